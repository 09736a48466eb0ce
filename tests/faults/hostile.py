"""Input that is meant to harm, or absurd: it is used or refused in one line, soon, in little memory."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from faults import rules
from faults.bench import Bench
from faults.child import Plan
from faults.scenes import Fault, Found

Words = list[str]


def _images(folder: Path, name: bytes = b"one") -> Path:
    """An image folder of two classes, one of them of this name."""
    import cv2
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    content = cv2.imencode(".jpg", noise)[1].tobytes()
    for kind in (name, b"two"):
        directory = folder / "images" / os.fsdecode(kind)
        directory.mkdir(parents=True)
        for number in range(12):
            (directory / f"{number}.jpg").write_bytes(content)
    return folder / "images"


def _folder(folder: Path, name: bytes = b"one") -> Words:
    return ["--data.source", "folder", "--data.path", str(_images(folder, name))]


def _pipe_among_images(folder: Path) -> Words:
    words = _folder(folder)
    os.mkfifo(folder / "images" / "two" / "x.jpg")
    return words


def _endless_image(folder: Path) -> Words:
    words = _folder(folder)
    (folder / "images" / "two" / "x.jpg").symlink_to("/dev/zero")
    return words


def _pipe_as_index(folder: Path, records: Path) -> Words:
    shutil.copytree(records, folder / "images")
    (folder / "images" / "train.idx").unlink()
    os.mkfifo(folder / "images" / "train.idx")
    return ["--data.path", str(folder / "images")]


def _huge_weights(folder: Path) -> Words:
    folder.mkdir()
    torch.save({"layers.0.weight": torch.zeros(1).expand(1 << 40)}, folder / "weights.pt")
    return ["--model.weights", str(folder / "weights.pt")]


def _pipe_as_weights(folder: Path) -> Words:
    folder.mkdir()
    os.mkfifo(folder / "weights.pt")
    return ["--model.weights", str(folder / "weights.pt")]


def _recipe(folder: Path, content: bytes) -> Words:
    folder.mkdir()
    (folder / "bomb.toml").write_bytes(content)
    return [str(folder / "bomb.toml")]


def harm(
    bench: Bench,
    folder: Path,
    most_lost: int | None,
    prepare: Callable[[Path], Words],
    statuses: tuple[int, ...],
) -> Found:
    """One start with the words that ``prepare`` gives; a recipe among them goes in the place of the tiny one."""
    words = prepare(folder)
    recipe = words.pop() if words[-1:] and words[-1].endswith(".toml") else "plain"
    ended = bench.train(folder, 1, *words, recipe=recipe, plans={0: Plan(memory_bytes=8 << 30)})
    found = Found([*rules.status_is(ended, statuses), *rules.one_line(ended), *rules.soon(ended, 20)])
    if "\x1b" in ended[0].out + ended[0].err:
        found.failed.append("what a terminal obeys was printed")
    return found


def cases(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    def fault(name: str, prepare: Callable[[Path], Words], *statuses: int) -> Fault:
        return Fault(name, partial(harm, prepare=prepare, statuses=statuses))

    yield fault("a pipe among images", _pipe_among_images, 0, 2)
    yield fault("an image that is a link to /dev/zero", _endless_image, 0, 2)
    yield fault(
        "a pipe as the index of records", partial(_pipe_as_index, records=bench.folder / "records"), 2
    )
    yield fault("weights that claim 2^40 values", _huge_weights, 2)
    yield fault("a pipe as weights", _pipe_as_weights, 2)
    yield fault(
        "a recipe of nested lists", partial(_recipe, content=b"a = " + b"[" * 49_000 + b"]" * 49_000), 2
    )
    yield fault("a recipe of dotted keys", partial(_recipe, content=b"a" + b".a" * 49_000 + b" = 1"), 2)
    yield fault("a recipe that is not text", partial(_recipe, content=bytes(range(256))), 2)
    yield fault("a class name that clears the screen", partial(_folder, name=b"\x1b[2J\x1b]0;x\x07"), 0)
    yield fault("a class name of two lines", partial(_folder, name=b"one\nmegaclass: error"), 0, 2)
    yield fault("a class name that is not UTF-8", partial(_folder, name=b"caf\xe9"), 0)
    for words in (
        "run.threads 100000", "data.global_batch_size 100000000", "model.width 1000000", "model.embedding_dim 1000000",
        "data.image_size 100000", "schedule.steps 1000000000000000000000", "optim.lr nan", "optim.lr 1e308",
        "data.workers 100000", "run.seed -1", "data.path /dev/zero", "run.output /dev/null",
    ):  # fmt: skip
        setting, value = words.split()
        yield fault(f"{setting} {value}", lambda folder, s=setting, v=value: [f"--{s}", v], 0, 2)
