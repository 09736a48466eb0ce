"""A folder in which the commands of README and docs find what they name: tiny sets, runs, rows and checkpoints."""

import contextlib
import io
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

import fake_peer
import tiny
from megaclass.checkpoint import manifest
from megaclass.cli import main
from megaclass.config import load_recipe

ROOT = Path(__file__).parents[1]
CLASSES, SAMPLES = 30, 4
RESULTS = ROOT / "benchmarks" / "results"

# What training is shortened by, where the command does not say otherwise.
SHORT = {
    "run.device": "cpu", "run.threads": "1", "run.track": "none", "data.workers": "1",
    "data.global_batch_size": "8", "data.num_classes": "0", "data.image_size": "32", "schedule.steps": "2",
    "precision.compute": "fp32", "evaluate.batch_size": "8", "evaluate.every_epochs": "0", "evaluate.every": "0",
}  # fmt: skip


def picture(label: int, sample: int) -> bytes:
    """An image of its class, as JPEG."""
    random = np.random.default_rng(label)
    pattern = random.integers(0, 200, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    noise = np.random.default_rng(1000 * label + sample + 1).integers(0, 56, pattern.shape)
    return cv2.imencode(".jpg", (pattern + noise).astype(np.uint8))[1].tobytes()


def write_folder(folder: Path, names: list[str]) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for sample in range(SAMPLES):
            (folder / name / f"{name.rpartition('/')[2]}_{sample + 1:04}.jpg").write_bytes(picture(label, sample))


def write_imagenet(folder: Path, images: Path, wnids: list[str]) -> None:
    """The archives of ILSVRC: a tar of class tars, and a tar of images with a file of numbers."""
    with (
        tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train,
        tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as val,
    ):
        for n, wnid in enumerate(wnids):
            train.add(shutil.make_archive(str(folder / wnid), "tar", images / wnid), f"{wnid}.tar")
            val.add(images / wnid / f"{wnid}_0001.jpg", f"ILSVRC2012_val_{n + 1:08}.JPEG")
    numbers = "".join(f"{n + 1}\n" for n in range(len(wnids)))
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
    (folder / "map_clsloc.txt").write_text("".join(f"{w} {n + 1} name\n" for n, w in enumerate(wnids)))


def write_omniglot(folder: Path) -> None:
    for part in ("background", "evaluation"):
        write_folder(
            folder / f"images_{part}",
            [f"{('Greek', 'Latin')[n % 2]}/character{n:02}" for n in range(CLASSES)],
        )
    bits = np.random.default_rng(0).integers(0, 2, (CLASSES * SAMPLES * 2, 105, 105)).astype(bool)
    np.savez(
        folder / "omniglot_105_bits.npz",
        bits=np.packbits(bits.reshape(len(bits), -1), axis=1),
        label=np.arange(len(bits)) // SAMPLES,
        background=np.arange(len(bits)) < len(bits) // 2,
    )


def run(*arguments: str) -> str:
    """A command of ours that must end well; returns what it printed."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(printed):
        assert main([*map(str, arguments)]) == 0, " ".join(map(str, arguments))
    return printed.buffer.getvalue().decode()  # type: ignore[attr-defined]


def shortened(recipe: str, given: list[str]) -> list[str]:
    """Settings that make a training of that recipe short, without those that the command gives itself."""
    config = load_recipe(recipe)
    short = dict(SHORT)
    if "--schedule.epochs" in given:  # the data is small
        del short["schedule.steps"]
    if config.model.name.startswith("resnet"):
        short |= {"model.name": "resnet18", "model.width": "8"}
    else:
        short |= {"model.name": "convnet", "model.width": "8", "model.embedding_dim": "16"}
    if config.data.start_size:
        short["data.start_size"] = "16"
    if config.data.source in ("glyphs", "synthetic"):
        short |= {"data.source": "records", "data.path": "data/ms1m", "evaluate.task": "none"}
    if recipe == "imagenette" or recipe.startswith("resnet"):
        short |= {"evaluate.resize": "0"}
    return [f"--{key}={value}" for key, value in short.items() if f"--{key}" not in given]


def write_all(root: Path) -> None:
    """Everything that pages name."""
    data = root / "data"
    identities = [f"shoe-{n:04}" for n in range(CLASSES)]
    write_folder(data / "products", identities)
    (root / "table.csv").write_text("".join(f"{name}/{name}_0001.jpg,{name}\n" for name in identities))
    tiny.write_records(data / "packed", CLASSES, SAMPLES)
    for name in ("ms1m", "glint", "ms1mv3", "glint360k", "ms1m-retinaface-t1"):
        shutil.copytree(data / "packed", data / name)
    shutil.copytree(data / "ms1m", root / "network" / "ms1m")
    wnids = [f"n0144076{n}" for n in range(4)]
    for name in ("imagenet", "imagenette"):
        write_folder(data / name / "train", wnids)
        write_folder(data / name / "val", wnids)
    write_imagenet(root, data / "imagenet" / "train", wnids)
    write_omniglot(root)
    write_folder(root / "photos", ["some"])
    (root / "photo.jpg").write_bytes(picture(1, 1))
    (root / "names.txt").write_text("".join(f"{wnid} name\n" for wnid in wnids))
    with contextlib.chdir(root):
        write_results(root, data)


def write_results(root: Path, data: Path) -> None:
    """What earlier commands left: runs, checkpoints of arcface_torch, verification sets, rows."""
    trained = {"faces_r50": "packed", "glyphs": "packed", "imagenette": "imagenette/train"}
    for recipe, path in (*trained.items(), ("resnet50_imagenet_90ep", "imagenet/train")):
        given = ["--data.path", str(data / path), "--data.source"]
        if "/" in path:
            given += ["folder", "--evaluate.path", str(data / path.replace("train", "val"))]
        else:
            given += ["records", "--evaluate.task", "none"]
        run("train", recipe, *given, *shortened(recipe, given), "--run.output", f"runs/{recipe}-001")
    checkpoints = root / "runs" / "glyphs-001" / "checkpoints"
    later = shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00002000")
    contents = manifest.read(checkpoints / "step-00000002")
    (later / manifest.NAME).unlink()
    manifest.write(later, replace(contents, step=2000))
    run("export", "arcface_torch", "runs/faces_r50-001", "OLD", "--ranks", "2")
    weights = torch.load("OLD/checkpoint_gpu_0.pt", weights_only=True)["state_dict_backbone"]
    torch.save(weights, "backbone.pth")
    run("data", "pairs", "data/products", "--pairs", "40", "--folds", "2", "--output", "pairs.bin")
    tiny.write_lfw_pairs(Path("pairs.txt"), data / "products", 40, folds=2)
    for name in ("lfw.bin", "faces.bin", "data/ms1mv3/lfw.bin", "data/ms1m-retinaface-t1/lfw.bin",
                 "data/ms1m-retinaface-t1/agedb_30.bin"):  # fmt: skip
        shutil.copy("pairs.bin", name)
    with zipfile.ZipFile("lfw.zip", "w") as archive:
        for path in (data / "products").rglob("*.jpg"):
            archive.write(path, path.relative_to(data / "products"))
    suite = RESULTS / "suite-arcface-a100-cpu" / "rows.jsonl"
    (root / "runs" / "suite-arcface-a100").mkdir()
    shutil.copy(suite, root / "runs" / "suite-arcface-a100" / "rows.jsonl")
    for name in ("insightface", "DIR"):
        fake_peer.write(root / name)
    for name in ("rows", "before", "after", "old", "new"):
        shutil.copy(RESULTS / "train-faces-cpu.jsonl", f"{name}.jsonl")
    for name in ("head", "infer", "loader"):
        shutil.copy(RESULTS / f"{name}-cpu.jsonl", f"{name}.jsonl")
    shutil.copy(RESULTS / "train-imagenet-cpu.jsonl", "train.jsonl")
