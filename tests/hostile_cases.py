"""Hostile and odd input, by what it is in words: for tests/unit, and for the campaign of faults, which lists it."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch

import ranks
import tiny
from megaclass.cli import main
from megaclass.models.registry import build_backbone

SECONDS, MEMORY = (
    20,
    500 << 20,
)  # on a busy machine; what a command may take beside what importing PyTorch takes
NASTY = "\x1b]0;title\x07\x1b[31m\r\x9b\x85\u202e\n"  # escapes, BEL, CR, C1, a right-to-left override, LF

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
JPEG = simplejpeg.encode_jpeg(NOISE)


class Case(NamedTuple):
    make: Callable[[Path], list[Any]]  # in an empty folder: the words of a command
    said: str
    status: int = 2


def images(folder: Path, name: str = "set") -> Path:
    for number in range(16):
        path = folder / name / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(np.roll(NOISE, number, 0)))
    return folder / name


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def zero(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


def huge(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


def in_folder(odd: Callable[[Path], Path], *words: str) -> Callable[[Path], list[Any]]:
    """A command on a folder of images one of which is no regular file."""
    return lambda folder: [*words[:2], odd(images(folder) / "a" / "x.jpg").parents[1], *words[2:]]


def in_records(name: str, odd: Callable[[Path], Path]) -> Callable[[Path], list[Any]]:
    """A look at a record set of which one file is not regular."""
    return lambda folder: ["data", "info", odd(tiny.write_records(folder / "set") / name).parent]


def trained(*words: str) -> Callable[[Path], list[Any]]:
    return lambda folder: ["train", tiny.recipe(folder), *words]


def synthetic(*words: str) -> Callable[[Path], list[Any]]:
    return trained("--data.source", "synthetic", "--data.path=", *words)


def with_file(odd: Callable[[Path], Path], name: str, *words: str) -> Callable[[Path], list[Any]]:
    """A command of ``words`` on images and records, in which FILE is what ``odd`` makes."""

    def make(folder: Path) -> list[Any]:
        images(folder)
        tiny.recipe(folder)
        path = odd(folder / name)
        return [path if word == "FILE" else word for word in words]

    return make


def weights(folder: Path) -> list[Any]:
    """Each tensor of the right shape, with one number in it."""
    net = build_backbone("convnet", image_size=tiny.SIZE, width=8, embedding_dim=16)
    claimed = {key: torch.zeros(1).as_strided(t.shape, (0,) * t.ndim) for key, t in net.state_dict().items()}
    torch.save(claimed, folder / "model.pt")
    return ["train", tiny.recipe(folder), "--model.weights", folder / "model.pt"]


def toml(text: str) -> Callable[[Path], list[Any]]:
    def make(folder: Path) -> list[Any]:
        (folder / "bomb.toml").write_text(text)
        return ["train", folder / "bomb.toml"]

    return make


def truncated(*words: str) -> Callable[[Path], list[Any]]:
    def make(folder: Path) -> list[Any]:
        (images(folder) / "a" / "cut.jpg").write_bytes(JPEG[: len(JPEG) // 2])
        return ["data", "pack", folder / "set", folder / "out", *words]

    return make


def nasty_folder(*words: str) -> Callable[[Path], list[Any]]:
    """A folder whose name, one of whose images and one of whose suffixes a terminal would obey."""

    def make(folder: Path) -> list[Any]:
        root = images(folder, f"set{NASTY}")
        (root / "a" / f"x{NASTY}.jpg").write_bytes(JPEG[:99])
        (root / "a" / f"x.{NASTY}").write_bytes(b"text")
        return [*words[:2], root, *(word.replace("NASTY", NASTY) for word in words[2:])]

    return make


def nasty_class(folder: Path) -> list[Any]:
    (images(folder) / "a").rename(folder / "set" / "a\nb")
    return ["train", tiny.recipe(folder), "--data.source", "folder", "--data.path", folder / "set"]


def flat_folder(folder: Path) -> list[Any]:
    root = folder / "flat"
    root.mkdir()
    for name in ("1.jpg", "2.jpg", "3.heic"):
        (root / name).write_bytes(JPEG)
    (folder / "labels.txt").write_text("a\nb\n")
    return ["data", "pack", root, folder / "out", "--labels", folder / "labels.txt"]


def resumed(folder: Path) -> list[Any]:
    words = ["train", tiny.recipe(folder, run={"output": str(folder / "run\udcff")}), "--schedule.steps"]
    assert main([*words, "1"]) == 0
    return [*words, "2", "--resume"]


def nasty_recipe(folder: Path) -> list[Any]:
    text = (
        Path(tiny.recipe(folder)).read_text().replace('recipe = "tiny"\n', "").replace(f'output = "{folder}/run"', "")
    )
    (folder / "r\udcff.toml").write_text(text)
    return ["train", folder / "r\udcff.toml"]


PACK, ONE_PIPE = ("data", "pack", "out"), "x.jpg cannot be read: it is a pipe"
EVALUATE = ("evaluate", "verification", "FILE", "--recipe", "tiny.toml")
PAIRS = ("evaluate", "verification", "set", "--recipe", "tiny.toml", "--pairs", "FILE")
LABELS = ("data", "pack", "set", "out", "--labels", "FILE")
DEVICE, TOO_LARGE = "it is a device, not a regular file", "it has 1,099,511,627,776 bytes, the limit is"

CASES = {
    "a named pipe in a folder of images, packed": Case(in_folder(pipe, *PACK), ONE_PIPE),
    "the same, left out by --on-error skip": Case(in_folder(pipe, *PACK, "--on-error", "skip"), ONE_PIPE, 0),
    "a named pipe in a folder of images, looked at": Case(in_folder(pipe, "data", "info"), "damaged", 0),
    "a named pipe in a folder of images, trained on": Case(
        lambda folder: ["train", tiny.recipe(folder), "--data.source", "folder", "--data.path",
                        *in_folder(pipe)(folder)],
        ONE_PIPE,
    ),
    "an image that is a link to /dev/zero, checked": Case(in_folder(zero, "data", "check"), DEVICE, 1),
    "an .idx that is a pipe": Case(in_records("train.idx", pipe), "train.idx cannot be read: it is a pipe"),
    "an .idx of a terabyte": Case(in_records("train.idx", huge), TOO_LARGE),
    "a property file that is a pipe": Case(in_records("property", pipe), "'classes,height,width'"),
    "a classes.txt that is a pipe": Case(in_records("classes.txt", pipe), "it is a pipe"),
    "a .bin that is a link to /dev/zero": Case(with_file(zero, "x.bin", *EVALUATE), DEVICE),
    "a list of pairs that is a pipe": Case(with_file(pipe, "pairs.txt", *PAIRS), "it is a pipe"),
    "a file of labels that is a pipe": Case(with_file(pipe, "labels.txt", *LABELS), "it is a pipe"),
    "a table of a terabyte": Case(with_file(huge, "x.csv", "data", "pack", "FILE", "out"), TOO_LARGE),
    "an .npz that is none": Case(with_file(huge, "x.npz", "data", "pack", "FILE", "out"), "numpy.savez"),
    "centres that are a pipe": Case(
        with_file(pipe, "checkpoint_gpu_0.pt", "train", "tiny.toml", "--head.weights", "."), "it is a pipe"
    ),
    "weights that claim more numbers than their file holds": Case(weights, "more than the file holds"),
    "a recipe of a terabyte": Case(with_file(huge, "x.toml", "train", "FILE"), TOO_LARGE),
    "a recipe of 98 kB with one key of 49,000 parts": Case(toml(".".join(49_000 * ["a"]) + "=1"), "64 dots"),
    "a recipe with a name of 90 kB": Case(toml(f"recipe = '{90_000 * 'x'}'"), "set --run.output"),
    "escapes in the name of a recipe": Case(lambda folder: ["train", f"{NASTY}.toml"], "no such file"),
    "escapes in a path": Case(trained("--data.path", f"no{NASTY}"), "no such file"),
    "escapes in names of files, looked at": Case(nasty_folder("data", "info"), "left out", 0),
    "escapes in names of files, left out of a pack": Case(
        nasty_folder("data", "pack", "outNASTY", "--on-error", "skip"), "packed 16 images", 0
    ),
    "escapes in the names of a run's directories": Case(
        lambda folder: [*trained("--data.path", tiny.write_records(folder / f"set{NASTY}"))(folder),
                        "--run.output", f"run{NASTY}"],
        "result", 0,
    ),
    "escapes in the description of a recipe that is shown": Case(
        lambda folder: ["show", *toml(f'description = "{NASTY[4:5]}\x9b\u202e"')(folder)[1:]], "\\U0000009b", 0
    ),
    "a class name with a line feed": Case(nasty_class, "has a line feed"),
    "the directory of a run that is no UTF-8, resumed": Case(resumed, "continuing at step 1 of 2", 0),
    "a recipe whose file name is no UTF-8": Case(nasty_recipe, "r\\udcff-001", 0),
    "a model.width of a million": Case(trained("--model.width", "1000000"), "lower"),
    "a global batch of a hundred million": Case(
        trained("--data.global_batch_size", "100000000"), "data.global_batch_size"
    ),
    "a billion classes": Case(synthetic("--data.num_classes", "1000000000"), "classes"),
    "a linear head of a trillion classes": Case(
        synthetic("--data.num_classes", "1000000000000", "--head.kind", "linear"), "classes"
    ),
    "a hundred million loader threads": Case(trained("--data.workers", "100000000"), "is above 4096"),
    "a JPEG that was cut short, packed": Case(truncated(), "cut.jpg: damaged image"),
    "the same, with --on-error skip": Case(truncated("--on-error", "skip"), "left out", 0),
    "files of other suffixes beside labels": Case(flat_folder, "left out, being no images by their suffix: 1 .heic", 0),
    "a record set given as a folder": Case(trained("--data.source", "folder"), "set --data.source records"),
    "a folder given as a record set": Case(
        lambda folder: [*trained("--data.path", images(folder))(folder)], "set --data.source folder"
    ),
    "a run that is none": Case(lambda folder: ["predict", ".", "--run-dir", "runs/none"], "runs/none is no run"),
}  # fmt: skip


def limited(words: list[str], folder: Path) -> None:
    """The command in a process with little memory, its output in files."""
    os.chdir(folder)
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.exit(main(words))


def faults_of(case: Case, folder: Path) -> list[str]:
    """Run the case in an empty folder; what does not hold: it must end soon, within memory, and in one line that says
    what is wrong."""
    process = ranks.SERVER.Process(target=limited, args=([str(word) for word in case.make(folder)], folder))
    ranks.begin(process)
    status = ranks.wait_for(process, SECONDS)
    process.kill()
    ranks.wait_for(process, SECONDS)
    out, err = ((folder / f"{stream}.txt").read_text() for stream in ("out", "err"))
    held = {
        f"it ends within {SECONDS} s": status is not None,
        f"its status is {case.status}, not {status}: {err}": status == case.status,
        f"it says {case.said!r}: {err}": case.said in out + err,
        "it prints nothing that a terminal obeys": all(c.isprintable() or c == "\n" for c in out + err),
        f"one line: {err}": case.status != 2 or (err.count("\n") == 1 and err.startswith("megaclass: error: ")),
    }
    return [what for what, holds in held.items() if not holds]
