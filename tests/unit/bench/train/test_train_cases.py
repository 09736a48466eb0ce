"""What a case of `bench train` trains."""

from types import SimpleNamespace

import pytest

import tiny
from megaclass.bench.old_train.cases import TrainCase, config_of, resolved
from megaclass.bench.old_train.plan import planned
from megaclass.cli import parsing
from megaclass.cli.bench.train import options_of_train, settings_of
from megaclass.errors import UserError


def options(*words):
    parser = parsing.make_parser("megaclass bench train", "")
    options_of_train(parser)
    found, given = parsing.parse_with_settings(parser, ["--device", "cpu", *words])
    found.settings = settings_of(given)
    return found


def cases(*words):
    return [one.case for one in planned(options(*words))]


def test_what_a_case_leaves_out_is_as_its_recipe_says():
    case = resolved(TrainCase(recipe="faces_r50"))
    assert (case.backbone, case.embedding_dim, case.global_batch_size) == ("iresnet50", 512, 1024)
    assert case.num_classes == 100_000 and case.sample_rate == 1.0 and case.parallelism == "model"
    assert resolved(case) == case
    photos = resolved(TrainCase())
    assert photos.num_classes == 1000 and photos.embedding_dim == 2048 and resolved(photos) == photos


def test_what_a_case_says_goes_before_its_recipe():
    case = TrainCase(
        recipe="faces_r50",
        backbone="iresnet18",
        num_classes=5,
        image_size=32,
        global_batch_size=8,
        precision="bf16",
        sample_rate=0.5,
        parallelism="data",
        storage="bf16",
        seed=3,
        settings={"optim.lr": 0.5, "model.dropout": 0.25},
    )
    config = config_of(case)
    assert config.data.source == "synthetic" and config.data.num_classes == 5 and config.data.image_size == 32
    assert config.model.name == "iresnet18" and config.model.dropout == 0.25 and config.optim.lr == 0.5
    assert (
        config.head.sample_rate == 0.5 and config.head.parallelism == "data" and config.head.storage == "bf16"
    )
    assert config.precision.compute == config.head.precision == "bf16"
    assert config.run.seed == 3 and config.evaluate.task == "none"


def test_float32_is_without_tf32():
    assert config_of(TrainCase(precision="fp32")).precision.tf32 is False
    assert config_of(TrainCase(precision="fp16", tf32=True)).precision.tf32 is True
    assert [case.precision for case in cases("--dtype", "float32,tf32,float16,bfloat16")] == [
        "fp32", "tf32", "fp16", "bf16",
    ]  # fmt: skip


def test_the_flags_of_nvidias_script_mean_what_they_mean_there():
    words = "-n 1,4,8 -b 512 --dtype float16 -i 500 -e 3 -w 1 --num-examples 32000 --mode train"
    found = cases(*words.split())
    assert [(case.world_size, case.global_batch_size) for case in found] == [(1, 512), (4, 2048), (8, 4096)]
    assert {(case.precision, case.iterations, case.epochs, case.warmup) for case in found} == {
        ("fp16", 500, 2, 1)
    }
    assert {(case.num_examples, case.recipe, case.data) for case in found} == {
        (32000, "resnet50_imagenet", "synthetic")
    }


def test_a_batch_over_all_devices_scales_strongly():
    found = cases("-n", "1,2", "--global-batch-size", "64")
    assert [(case.world_size, case.global_batch_size) for case in found] == [(1, 64), (2, 64)]


def test_other_settings_are_given_as_for_a_training():
    (case,) = cases(
        "--recipe", "faces_r50", "--model.checkpoint_activations", "true", "--data.accumulation", "2"
    )
    assert case.settings == {"model.checkpoint_activations": True, "data.accumulation": 2}
    config = config_of(case)
    assert config.model.checkpoint_activations and config.data.accumulation == 2


def test_lists_are_combined():
    found = cases("--recipe", "faces_r50", "--num-classes", "1K,2K", "--sample-rate", "1,0.1", "-b", "4,8")
    assert len(found) == 8 and len(set(map(str, found))) == 8


def test_data_of_ones_own_says_its_classes(tmp_path):
    tiny.write_records(tmp_path / "train")
    (case,) = cases("--data-root", str(tmp_path))
    assert config_of(case).data.path == str(tmp_path / "train") and config_of(case).data.source == "records"
    assert case.num_classes == 6 and resolved(case) == case
    with pytest.raises(UserError, match="has 6 classes"):
        cases("--data-root", str(tmp_path), "--num-classes", "7")


def test_a_seed_of_zero_is_said(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nseed = 7\n")
    assert config_of(TrainCase(recipe=str(path), seed=0)).run.seed == 0


def test_another_content_of_a_recipe_file_is_another_case(tmp_path):
    path = tmp_path / "mine.toml"
    found = []
    for lr in ("0.1", "0.2"):
        path.write_text(f"[optim]\nlr = {lr}\n")
        (one,) = planned(options("--recipe", str(path)))
        found += one.keys()
        assert len(one.case.parameters()["recipe_digest"]) == 12
    assert found[0] != found[1] and "recipe_digest" not in TrainCase().parameters()


def test_inference_takes_what_it_has_of_the_flags():
    (case,) = cases("--mode", "val", "-b", "2", "--num-classes", "10")
    assert case.benchmark == "infer" and case.num_classes == 10 and case.batch_size == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"global_batch_size": 7, "simulate_ranks": 2}, "does not divide"),
        ({"device": "cuda", "world_size": 2}, "GPUs"),
        ({"precision": "tf32"}, "CUDA"),
        ({"world_size": 1000, "global_batch_size": 1000}, "too many"),
        ({"precision": "fp16", "tf32": True}, "CUDA"),
    ],
)
def test_what_a_machine_cannot_do_is_skipped(change, reason):
    found = resolved(TrainCase(**change)).why_skipped(gpus=1)
    assert reason in found and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--dtype", "float8"], "float8"),
        (["--recipe", "resnet51"], "resnet50"),
        (["--backbone", "iresnet51"], "iresnet50"),
        (["--mode", "test"], "mode"),
        (["-e", "1", "-w", "1"], "--epochs"),
        (["-w", "-1"], "--epochs"),
        (["-b", "8", "--global-batch-size", "8"], "--batch-size"),
        (["-b", "many"], "--batch-size: 'many'"),
        (["-n", "2", "--simulate-ranks", "2"], "--simulate-ranks"),
        (["--data-root", "nowhere"], "nowhere"),
        (["--data-root", "/etc"], "/etc"),
        (["--mode", "val", "-b", "2", "--data-root", "nowhere"], "nowhere"),
        (["--mode", "val"], "--batch-size"),
        (["--mode", "val", "-b", "2", "-n", "2"], "--ngpus"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["--backbone", ","], "comma"),
        (["--dtype", "float32,"], "comma"),
        (["--evaluate.task", "verification"], "evaluates nothing"),
        (["--sample-rate", "2"], "sample_rate"),
        (["--image-size", "4"], "image_size"),
        (["--num-classes", "-5"], "num-classes"),
        (["--data.image_size", "32"], "--image-size"),
        (["--optim.lrr", "1"], "optim.lr"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        planned(options(*words))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_case_is_its_own_row():
    case = resolved(TrainCase(simulate_ranks=2))
    assert case.parameters()["simulate_ranks"] == 2 and "rank 0 of 2" in case.text
    assert SimpleNamespace(**case.parameters()).recipe == "resnet50_imagenet"
