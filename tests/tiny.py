"""A run small enough for a test: noisy patterns as records, a narrow network, a few steps, on a CPU."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from megaclass.cli import main
from megaclass.config import Config, from_mapping, to_toml
from megaclass.data.open import open_dataset
from megaclass.data.records.writer import RecordWriter
from megaclass.evaluation.pairs import generate_pairs
from megaclass.models.convnet import ConvNet
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.results.events import Event, read_events
from megaclass.results.rundir import RunDirectory
from megaclass.train import loop
from megaclass.train.job import Job, build_job

SIZE = 16
CLASSES = 6
SAMPLES = 4  # of each class


def write_records(folder: Path, classes: int = CLASSES, samples: int = SAMPLES) -> Path:
    """A record set whose classes are easy to tell apart: a pattern for each, under noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (classes, 4, 4, 3)).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
    with RecordWriter(folder) as writer:
        for label, pattern in enumerate(patterns):
            for _ in range(samples):
                image = (pattern + random.integers(0, 56, pattern.shape)).astype(np.uint8)
                writer.write(cv2.imencode(".jpg", image)[1].tobytes(), label, (SIZE, SIZE))
    return folder


def write_lfw_pairs(path: Path, folder: Path, count: int, folds: int = 10) -> None:
    """Pairs drawn from ``folder``, whose images are Name/Name_0001.jpg, as LFW's list names them."""
    images, text = sorted(folder.glob("*/*.jpg")), f"{folds}\t{count // folds // 2}\n"
    pairs = generate_pairs(open_dataset(folder).labels(), count, 0, folds)
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        person, one, other, two = (part for i in (first, second) for part in images[i].stem.rsplit("_", 1))
        text += f"{person}\t{one}\t{two}\n" if same else f"{person}\t{one}\t{other}\t{two}\n"
    path.write_text(text)


def smooth(*, embedding_dim: int, image_size: int, width: int) -> ConvNet:
    """A backbone without the kinks of ReLU: beside a kink, rounding decides which way a gradient goes, and
    two runs that compute the same drift apart."""
    net = ConvNet(embedding_dim=embedding_dim, image_size=image_size, width=width)
    for name, layer in net.layers.named_children():
        if isinstance(layer, nn.ReLU):
            net.layers[int(name)] = nn.SiLU()
    return net


def config(folder: Path, **sections: dict[str, Any]) -> Config:
    """A run of ``folder/records`` (written if missing) into ``folder/run``; ``sections`` change settings."""
    records = folder / "records"
    if not records.exists():
        write_records(records)
    base = {
        "run": {"output": str(folder / "run"), "device": "cpu", "threads": 1, "log_every": 1, "track": "none"},
        "data": {"source": "records", "path": str(records), "image_size": SIZE, "global_batch_size": 12, "workers": 1},
        "model": {"name": "convnet", "width": 8, "embedding_dim": 16},
        "head": {"scale": 16.0},
        "optim": {"lr": 0.01},
        "schedule": {"steps": 10},
        "precision": {"compute": "fp32"},
        "evaluate": {"task": "none"},
    }  # fmt: skip
    return from_mapping(sections, from_mapping({"recipe": "tiny"} | base))


def recipe(folder: Path, **sections: dict[str, Any]) -> str:
    """The same as a recipe file; returns its path."""
    path = folder / "tiny.toml"
    path.write_text(to_toml(config(folder, **sections)), encoding="utf-8", errors="surrogateescape")
    return str(path)


def world() -> World:
    """This process among the ranks of its group, or alone."""
    return World(groups.rank(), groups.world_size(), torch.device("cpu"))


def job(folder: Path, **sections: dict[str, Any]) -> Job:
    """What such a run trains, before its first step."""
    return build_job(config(folder, **sections), world())


def run(folder: Path, resume: bool = False, **sections: dict[str, Any]) -> tuple[RunDirectory, dict[str, Any]]:
    """The run to its end: its directory, and what its result.json holds."""
    return loop.run(config(folder, **sections), world(), resume)


def evaluated(folder: Path, *words: Any) -> dict[str, Any]:
    """The metrics that ``megaclass evaluate`` writes, asked with these words; the file lies in ``folder``."""
    output = folder / "found.json"
    output.unlink(missing_ok=True)
    assert main(["evaluate", *map(str, words), "--output", str(output)]) == 0
    ((kind, found),) = json.loads(output.read_text()).items()
    assert kind == words[0]
    return found


def events(run: Path, kind: type[Event]) -> list[Any]:
    """Those of a kind in the log of a run's directory."""
    return [event for event in read_events(run / "events.jsonl") if isinstance(event, kind)]
