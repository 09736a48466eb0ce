"""Anybody's network is scored by the protocol of ``megaclass evaluate``, and so are embeddings that it has made."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import megaclass
import tiny
from megaclass.cli import main
from megaclass.config import Config
from megaclass.config.sections import Data
from megaclass.data.augment import EvalTransform
from megaclass.data.loader import IMAGENET_MEAN, IMAGENET_STD, eval_batches, to_model_input
from megaclass.data.open import open_dataset
from megaclass.data.records.reader import RecordDataset
from megaclass.data.verification_bin import VerificationBin, write_bin
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import tell_of_overlap

SIZE = (24, 20)  # height, width: not square


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images as a record set, as directories ``images/n0000000c``, as pairs ``set.bin`` and ``pairs.txt``; a run of
    each head."""
    root = tmp_path_factory.mktemp("score")
    records = RecordDataset(tiny.write_records(root / "records"))
    encoded = [records.read(index).encoded for index in range(len(records))]
    for index, label in enumerate(records.labels().tolist()):
        name = f"n0000000{label}"
        path = root / "images" / name / f"{name}_{index % tiny.SAMPLES + 1:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[index])
    numbers = np.random.default_rng(0).integers(len(records), size=80)
    same = records.labels()[numbers[0::2]] == records.labels()[numbers[1::2]]
    write_bin(root / "set.bin", [encoded[number] for number in numbers], same)
    lines = ["n00000001\t1\t2", "n00000001\t3\tn00000002\t1", "n00000005\t1\t4", "n00000003\t2\tn00000004\t2"]
    (root / "pairs.txt").write_text("\n".join(["2\t1", *lines]) + "\n")
    for kind in ("margin", "linear"):
        data = {"source": "folder", "path": str(root / "images")}
        run = {"output": str(root / kind)}
        assert main(["train", tiny.recipe(root, run=run, data=data, head={"kind": kind})]) == 0
    return root


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def assert_alike(found, expected):
    """Thresholds are cosines, which depend on the size of a batch in their last bit."""
    (found, cosines), (expected, others) = (
        (
            {k: v for k, v in metrics.items() if "threshold" not in k},
            [metrics["threshold"], *metrics["threshold_at_far"].values()],
        )
        for metrics in (found, expected)
    )
    assert found == expected
    assert [c and round(c, 5) for c in cosines] == [c and round(c, 5) for c in others]


def network(columns=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], columns))


def embeddings(model, dataset):
    batches = eval_batches(dataset, EvalTransform(SIZE), 7)
    with torch.inference_mode():
        return torch.cat([model(to_model_input(batch.images, "cpu")) for batch in batches]).numpy()


def test_a_network_of_images_that_are_not_square_is_scored_as_its_embeddings_are(folder, tmp_path):
    model, stored = network(), VerificationBin("set.bin")
    found = megaclass.evaluate(model, "set.bin", size=SIZE, batch_size=9)
    function = megaclass.evaluate(lambda images: model(images), "set.bin", size=SIZE)
    assert found.metrics == function.metrics and found.metrics["pairs"] == 40
    rows = embeddings(model, stored)
    of_pairs = rows[np.stack([stored.first, stored.second], 1).ravel()]  # as arcface_torch's script has them
    for number, array in enumerate((rows, of_pairs)):
        np.save(tmp_path / f"{number}.npy", array)
        words = ["verification", "set.bin", "--embeddings", str(tmp_path / f"{number}.npy")]
        assert_alike(tiny.evaluated(tmp_path, *words), found.metrics)
    grid = tiny.evaluated(tmp_path, *words, "--evaluate.thresholds", "insightface")
    assert_alike(grid, megaclass.evaluate(model, "set.bin", size=SIZE, thresholds="insightface").metrics)


def test_embeddings_are_found_by_the_names_of_images(folder, tmp_path):
    """In any order, more than are asked for, and under another directory."""
    dataset = open_dataset("images")
    rows = embeddings(network(), dataset)
    order = np.random.default_rng(1).permutation(len(rows))
    names = [f"elsewhere/lfw/{dataset.names[number]}" for number in order]
    np.savez(tmp_path / "rows.npz", embeddings=rows[order], names=np.array(names))
    words = ["--embeddings", str(tmp_path / "rows.npz")]
    options = {"pairs": 20, "folds": 2}
    found = tiny.evaluated(tmp_path, "verification", "images", *words, "--evaluate.pairs", 20, "--evaluate.folds", 2)
    assert_alike(found, megaclass.evaluate(network(), "images", size=SIZE, **options).metrics)
    found = tiny.evaluated(tmp_path, "verification", "images", "--pairs", "pairs.txt", *words)
    assert_alike(found, megaclass.evaluate(network(), "images", size=SIZE, pairs_file="pairs.txt").metrics)


def test_a_loaded_run_is_scored_as_by_the_command(folder, tmp_path):
    for kind, run, path in (("verification", "margin", "set.bin"), ("classification", "linear", "images")):
        found = megaclass.evaluate(megaclass.load(run, device="cpu", threads=1), path, kind)
        assert tiny.evaluated(tmp_path, kind, path, "--run-dir", run) == found.metrics


def test_the_network_of_an_onnx_file_is_scored_as_the_module_is(folder, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, of = network(), onnx.helper
    weights = [onnx.numpy_helper.from_array(w.detach().numpy(), n) for n, w in model[1].named_parameters()]
    nodes = [
        of.make_node("Flatten", ["x"], ["f"]),
        of.make_node("Gemm", ["f", "weight", "bias"], ["y"], transB=1),
    ]
    (x, y) = (of.make_tensor_value_info(n, 1, shape) for n, shape in (("x", ["B", 3, *SIZE]), ("y", ["B", 8])))
    opset = [of.make_opsetid("", 18)]
    graph = of.make_graph(nodes, "network", [x], [y], weights)
    onnx.save(of.make_model(graph, opset_imports=opset, ir_version=10), str(tmp_path / "x.onnx"))
    found = tiny.evaluated(tmp_path, "verification", "set.bin", "--onnx", str(tmp_path / "x.onnx"))
    assert_alike(found, megaclass.evaluate(model, "set.bin", size=SIZE).metrics)


def test_a_network_with_its_last_layer_classifies(folder):
    model = network(6)
    rows = embeddings(model, open_dataset("images"))
    found = megaclass.evaluate(model, "images", "classification", size=SIZE)
    assert found.metrics["top1"] == (rows.argmax(1) == np.arange(24) // 4).mean()
    classes = [f"n0000000{label}" for label in reversed(range(6))]
    found = megaclass.evaluate(model, "images", "classification", size=SIZE, classes=classes)
    assert found.metrics["top1"] == (rows.argmax(1) == 5 - np.arange(24) // 4).mean()


def test_a_class_is_that_of_an_image_and_its_mirror_image_where_asked(folder):
    model = network(6)
    classify = partial(megaclass.evaluate, path="images", kind="classification", size=SIZE)
    both = classify(lambda images: model(images) + model(images.flip(-1))).metrics
    assert classify(model, flip=True).metrics == both != classify(model).metrics


RESNET = f"resnet50_imagenet --model.name resnet18 --model.width 8 --data.image_size {tiny.SIZE} --evaluate.resize 0 "
RESNET = (RESNET + "--precision.compute fp32 --precision.channels_last false --model.weights tv.pth").split()


@pytest.fixture(scope="module")
def classifier(folder):
    """A ResNet with its last layer for 10 classes, stored as torchvision does, and names of these in label order."""
    torch.manual_seed(1)
    backbone = megaclass.build_backbone("resnet18", width=8, image_size=tiny.SIZE).eval()
    head = nn.Linear(backbone.embedding_dim, 10)
    torch.save(backbone.state_dict() | {f"fc.{k}": v for k, v in head.state_dict().items()}, folder / "tv.pth")
    (folder / "names.txt").write_text("".join(f"n0000000{9 - label} name {label}\n" for label in range(10)))
    pairs = {str(label): [f"n0000000{9 - label}", f"name {label}"] for label in range(10)}
    (folder / "names.json").write_text(json.dumps(pairs))
    return nn.Sequential(backbone, head)


@pytest.mark.parametrize("names", ["names.txt", "names.json"])
def test_weights_of_torchvision_classify_with_their_own_last_layer(folder, tmp_path, classifier, names):
    words = ["images", "--recipe", *RESNET, "--names", names]
    found = tiny.evaluated(tmp_path, "classification", *words)
    options = {"size": tiny.SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    classes = [f"n0000000{9 - label}" for label in range(10)]
    scored = megaclass.evaluate(classifier, "images", "classification", classes=classes, **options)
    assert found == scored.metrics
    output = tmp_path / "found.jsonl"
    assert main(["predict", *words, "--output", str(output)]) == 0
    best = [json.loads(line)["predictions"][0] for line in output.read_text().splitlines()]
    assert np.mean([guess["class"] == f"n0000000{index // 4}" for index, guess in enumerate(best)]) == found["top1"]
    assert all(
        (guess["class"][-1], guess["name"]) == (str(9 - guess["label"]), f"name {guess['label']}") for guess in best
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verification", "set.bin"], "name the model by one of --run-dir, --onnx, --recipe and --embeddings"),
        (["verification", "set.bin", "--run-dir", "margin", "--embeddings", "x.npy"], "name the model by one of"),
        (["verification", "set.bin", "--run-dir", "none"], "--run-dir: none is no run"),
        (["verification", "set.bin", "--embeddings", "x.npy"], "x.npy"),
        (["verification", "set.bin", "--embeddings", "few.npy"], "holds 3 embeddings, and there are"),
        (["verification", "images", "--embeddings", "some.npz"], "no embedding of n00000001/n00000001_0001.jpg"),
        (["verification", "images", "--embeddings", "twice.npz"], "more than one embedding of n00000000/n000"),
        (["verification", "set.bin", "--embeddings", "few.npy", "--evaluate.flip", "true"], "evaluate.flip"),
        (["classification", "images", "--embeddings", "few.npy"], "--pairs and --embeddings go with verification"),
        (["classification", "images", "--run-dir", "margin"], "has no linear head"),
        (["classification", "images", "--recipe", "tiny.toml"], "has no linear head"),
        (["classification", "images", "--recipe", "R"], "has 6 classes, the model 10, and without class names"),
        (["classification", "images", "--recipe", "R", "--names", "bad.txt"], "holds 1 names, none of them by class"),
        (["verification", "set.bin", "--onnx", "none.onnx"], "none.onnx"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_told_in_a_line(refused, folder, classifier, words, message):
    np.save("few.npy", np.eye(3, 4))
    names = open_dataset("images").names
    np.savez("some.npz", embeddings=np.eye(4), names=np.array(names[:4]))
    np.savez("twice.npz", embeddings=np.eye(24), names=np.array([names[0], *names[:-1]]))
    (folder / "bad.txt").write_text("one\n")
    options = [word for part in words for word in (RESNET if part == "R" else [part])]
    refused(["evaluate", *options], message, warned=2 * (words[:2] == ["verification", "images"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flips": True}, "unknown key 'evaluate.flips'"),
        ({"kind": "verify"}, "verify"),
        ({"kind": "identification", "options": {"galery": "x"}}, "did you mean 'gallery'"),
        ({"kind": "classification"}, "gives (8,) numbers an image, not one for each of 6 classes"),
    ],
)
def test_what_a_program_asks_wrongly_is_told(folder, settings, message):
    with pytest.raises(UserError) as caught:
        megaclass.evaluate(network(), "images", size=SIZE, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x.flatten(1)[:1], lambda x: (x.flatten(1),)])
def test_a_function_that_gives_no_row_an_image_is_told_so(folder, function):
    with pytest.raises(UserError, match=r"the model gives .* for \d+ images, not a row of numbers for each"):
        megaclass.evaluate(function, "set.bin", size=SIZE)


# -- trained on, and evaluated ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "path", "names", "told"),
    [
        ("images", "images", ["n00000001", "z"], "images: 1 of its identities, 'n00000001' among them"),
        ("images", "images", None, "images is evaluated, and trained on too"),
        ("absent:records", "copy", None, "copy is evaluated, and trained on too"),  # the same bytes elsewhere
        ("records", "images", ["z"], ""),
    ],
)
def test_a_set_that_is_trained_on_is_noticed(folder, caplog, trained, path, names, told):
    shutil.copytree("records", "copy", dirs_exist_ok=True)
    config = Config(data=Data(source="folder", path=trained.replace(":", os.pathsep)))
    tell_of_overlap(config, Path(path), names, ["n00000000", "n00000001"])
    assert [record.getMessage()[: len(told)] for record in caplog.records] == [told] * bool(told)


def test_training_and_evaluating_on_one_set_says_so(folder, caplog):
    evaluate = {"task": "verification", "path": "images", "pairs": 20, "folds": 2}
    data = {"source": "folder", "path": str(folder / "images")}
    sections = {
        "evaluate": evaluate,
        "data": data,
        "run": {"output": str(folder / "again")},
        "schedule": {"steps": 1},
    }
    assert main(["train", tiny.recipe(folder, **sections)]) == 0
    assert main(["evaluate", "verification", "images", "--pairs", "pairs.txt", "--run-dir", "again"]) == 0
    told = [record.getMessage().split(", ")[0] for record in caplog.records]
    assert told == ["images: 6 of its identities", "images: 5 of its identities"]
