"""The configuration: strict, documented, checked, and the same after a trip through a file."""

import re
import tomllib
from pathlib import Path

import pytest

from megaclass.config import (
    SECTIONS,
    Config,
    differences,
    find_recipe,
    from_mapping,
    from_text,
    load_recipe,
    options,
    recipe_names,
    to_toml,
)
from megaclass.config.checks import absent
from megaclass.config.sections import Interval, Numbers, conditions
from megaclass.errors import UserError

EARLIER = Path(__file__).parents[2] / "fixtures" / "earlier"
SYNTHETIC = {"data": {"source": "synthetic", "num_classes": 10}, "evaluate": {"task": "none"}}


# -- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"optin": {}}, r"unknown section 'optin' \(did you mean 'optim'\?\)"),
        ({"optim": {"weight_deca": 0}}, "unknown key 'optim.weight_deca' .did you mean 'optim.weight_decay'"),
        ({"optim": {"global_batch_size": 8}}, "unknown key .*did you mean 'data.global_batch_size'"),
        ({"optim": 0.1}, r"optim is a section: write \[optim\]"),
        ({"recipe": 7}, "recipe: 7 is not a text"),
        ({"optim": {"lr": "fast"}}, "optim.lr: 'fast' is not a number"),
        ({"optim": {"lr": True}}, "optim.lr: True is not a number"),
        ({"run": {"seed": 1.0}}, "run.seed: 1.0 is not a whole number"),
        ({"augment": {"flip": 1}}, "augment.flip: 1 is not true or false"),
        ({"schedule": {"milestones": 0.5}}, "schedule.milestones: 0.5 is not a list of numbers"),
        ({"schedule": {"milestones": ["a"]}}, "schedule.milestones: 'a' is not a number"),
    ],
)
def test_what_is_not_understood_is_named(tree, message):
    with pytest.raises(UserError, match=message):
        from_mapping(tree)


def test_a_mapping_changes_what_it_names_and_whole_numbers_are_numbers():
    base = from_mapping({"optim": {"momentum": 0.8}, "run": {"seed": 3}})
    config = from_mapping({"optim": {"lr": 1}, "schedule": {"kind": "multistep", "milestones": [0, 1]}}, base)
    assert (config.optim.momentum, config.run) == (0.8, base.run)
    assert (config.optim.lr, config.schedule.milestones) == (1.0, (0.0, 1.0))
    assert type(config.optim.lr) is float


# -- limits -------------------------------------------------------------------------------------------


def beside(key):
    """A configuration in which ``key`` exists."""
    tree = {}
    for other, wanted in conditions(key).items():
        section, name = other.split(".")
        value = wanted[0] if wanted else {float: 0.5, bool: True, int: 64, str: "a run"}[options()[other].type]
        tree.setdefault(section, {})[name] = value
    return from_mapping(tree, complete=False)


def limited():
    """(key, value just outside its limit, what is said)."""
    for key, field in options().items():
        for side, word, step in (("low", "below", -1), ("high", "above", 1)):
            limit = field.metadata[side]
            if limit is not None:
                value = limit + step if field.type is int else limit + step * max(1e-3, 1e-9 * limit)
                several = field.type in (Interval, Numbers)
                yield key, [value] if several else value, f"{key}: .* is {word} {re.escape(str(limit))}"
        if field.metadata["choices"] and field.type is str:
            choice = field.metadata["choices"][-1]
            yield key, f"{choice}x", f"{key}: '{choice}x' is not one of .*did you mean '{choice}'"


def test_limits_and_choices_hold():
    for key, value, message in limited():
        section, name = key.split(".")
        with pytest.raises(UserError, match=message):
            from_mapping({section: {name: value}}, beside(key))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(number):
    multistep = {"kind": "multistep", "milestones": [0.5, number]}
    for tree in ({"optim": {"lr": number}}, {"schedule": multistep}):
        with pytest.raises(UserError, match="not a number to work with"):
            from_mapping(tree)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"data": {"source": "records"}}, "data.path: needed for data.source 'records'"),
        ({"head": {"margin": "per_class"}}, "head.class_margins: needed for head.margin 'per_class'"),
        ({"data": {"source": "synthetic"}}, "data.num_classes: needed"),
        ({"data": {"orientations": 3}}, "data.orientations: 3 is not one of 1, 2, 4, 8"),
        ({"data": {"accumulation": 3}}, "global_batch_size: 128 is no multiple of data.accumulation 3"),
        ({"schedule": {"epochs": 0}}, "schedule.epochs: 0 .* trains nothing"),
        (
            {"data": {"loader": "dali", "orientations": 2}, "augment": {"scale": 0.1, "policy": "timm"}},
            "data.loader: 'dali' .* not augment.scale, augment.policy, data.orientations; leave",
        ),
        (
            {"augment": {"policy": "timm", "policy_magnitude": 11}},
            "policy_magnitude: 11 is above 10, .* 'timm'",
        ),
        ({"evaluate": {"task": "classification"}}, "needs head.kind 'linear'"),
        (SYNTHETIC | {"evaluate": {}}, "evaluate.path: needed .*--evaluate.task none"),
    ],
)
def test_settings_that_do_not_go_together(tree, message):
    with pytest.raises(UserError, match=message):
        from_mapping(tree)


@pytest.mark.parametrize(
    "tree, key, why",
    [
        ({"head": {"label_smoothing": 0.1}}, "head.label_smoothing", "head.kind is 'linear', and it is 'margin'"),
        ({"schedule": {"steps": 5, "epochs": 3}}, "schedule.epochs", "schedule.steps is 0, and it is 5"),
        ({"data": SYNTHETIC["data"] | {"path": "x"}}, "data.path", "'glyphs' or 'records' or 'folder'"),
    ],
)  # fmt: skip
def test_a_key_that_does_not_exist_beside_the_others(tree, key, why):
    with pytest.raises(UserError, match=rf"^{key}: only where .*{why}"):
        from_mapping(tree)


def test_what_a_choice_brought_goes_with_it():
    """Only what is given beside the choice is refused; and to say what holds anyway is no mistake."""
    linear = load_recipe("resnet50_imagenet_250ep")
    assert linear.augment.mixup and linear.head.label_smoothing and linear.augment.flip
    margin = from_mapping({"head": {"kind": "margin", "label_smoothing": 0.0}, "evaluate": {"task": "none"}}, linear)
    assert not (margin.augment.mixup or margin.head.label_smoothing)
    noise = from_mapping(SYNTHETIC, linear)
    assert (noise.data.path, noise.augment.flip, noise.evaluate.every_epochs) == ("", False, 0.0)
    assert noise == from_mapping(tomllib.loads(to_toml(noise)))
    assert load_recipe("synthetic").schedule.samples
    by_epochs = from_mapping({"schedule": {"epochs": 20.0}}, load_recipe("synthetic")).schedule
    assert (by_epochs.epochs, by_epochs.samples) == (20.0, 0)
    by_steps = from_mapping({"schedule": {"steps": 5}}, load_recipe("synthetic"))
    assert from_mapping({"schedule": {"samples": 0}}, by_steps).schedule.steps == 5


def test_the_configuration_of_an_earlier_run_is_read():
    """It holds every key of every kind of head, and keys that are gone."""
    old = tomllib.loads((EARLIER / "linear" / "config.toml").read_text())
    assert old["head"]["scale"] == 16.0 and old["head"]["placement"] == "device"
    assert from_mapping(old, stored=True).head == from_mapping({"head": {"kind": "linear"}}, complete=False).head
    with pytest.raises(UserError, match=r"head\.placement: 'host' is no longer there"):
        from_mapping(old | {"head": {"placement": "host"}}, stored=True)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("optim.lr", "1e-3", 1e-3),
        ("run.seed", "7", 7),
        ("augment.flip", "True", True),
        ("schedule.milestones", "[0.5, 1]", [0.5, 1.0]),
        ("schedule.milestones", "0.5", [0.5]),
        ("optim.lr", "fast", "optim.lr: 'fast' is not a number"),
        ("run.seed", "1.5", "run.seed: '1.5' is not a whole number"),
    ],
)
def test_words_of_a_command_line(key, text, value):
    if isinstance(value, str):
        with pytest.raises(UserError, match=value):
            from_text(key, text)
    else:
        assert from_text(key, text) == value


# -- recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_sound_and_holds_only_what_differs(name):
    config = load_recipe(name)
    assert config.recipe == name and config.description
    file = find_recipe(name)
    tree, base = tomllib.loads(file.read_text()), Config()
    if name != file.stem:
        tree = tree["variants"][name.removeprefix(f"{file.stem}_")]
        base = load_recipe("_".join(filter(None, (file.stem, tree.get("like")))))
    given = {f"{section}.{key}" for section in SECTIONS for key in tree.get(section, {})}
    assert given <= differences(base, config).keys()
    for only_changed in (True, False):
        assert from_mapping(tomllib.loads(to_toml(config, only_changed=only_changed, docs=True))) == config


def test_a_variant_differs_from_its_file_in_what_it_says(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[optim]\nlr = 0.25\nmomentum = 0.8\n[variants.fast]\ndescription = "F"\n[variants.fast.optim]\nlr = 1\n'
        '[variants.light]\nlike = "fast"\noptim.momentum = 0.7\n'
    )
    plain, fast = load_recipe(str(mine)), load_recipe(f"{mine}:fast")
    assert (plain.recipe, plain.optim.lr) == ("mine", 0.25)
    assert (fast.recipe, fast.description, fast.optim.lr, fast.optim.momentum) == ("mine_fast", "F", 1.0, 0.8)
    light = load_recipe(f"{mine}:light")
    assert (light.recipe, light.optim.lr, light.optim.momentum) == ("mine_light", 1.0, 0.7)
    with pytest.raises(UserError, match=f"^{mine}: no variant 'fats' .did you mean 'fast'"):
        load_recipe(f"{mine}:fats")
    # What is at odds may still be set right on the command line.
    mine.write_text('[data]\nsource = "folder"\n[variants.fast.optim]\nlr = 1\n')
    with pytest.raises(UserError, match=r"data\.path: needed"):
        load_recipe(f"{mine}:fast")
    partly = load_recipe(f"{mine}:fast", complete=False)
    assert from_mapping({"data": {"path": "x"}, "evaluate": {"task": "none"}}, partly).optim.lr == 1.0


def test_a_recipe_may_begin_with_a_byte_order_mark_and_name_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.toml").write_bytes(b'\xef\xbb\xbf[data]\nsource = "folder"\npath = "~/a:~/b"\n')
    config = load_recipe(str(tmp_path / "mine.toml"), complete=False)
    assert config.data.path == f"{tmp_path}/a:{tmp_path}/b"


@pytest.mark.parametrize(
    "content",
    [
        b"[optim]\nlrr = 1\n",
        b"[variants.fast.modle]\nname = 1\n",
        b"[variants]\nfast = 1\n",
        b"[variants.fast]\nlike = 'fats'\n",
        b"[variants.fast]\nlike = ['fast']\n",
        b"[optim\n",
        b"\xff",
        b"x = " + 20_000 * b"[",
        b"x = 1" + 5_000 * b"0",
        b"[optim]\nlr = 1" + 400 * b"0",
        b"[schedule]\nsamples = 1" + 400 * b"0",
        b"[schedule]\nepochs = 1e308",
    ],
    ids=lambda content: content[:20],
)
def test_a_mistake_in_a_recipe_names_the_file(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}"):
        load_recipe(str(path))


# -- writing ------------------------------------------------------------------------------------------


def test_the_file_of_a_run_is_complete_and_a_recipe_short():
    strange = "".join(map(chr, range(256))) + "\u2028\U0001f600"
    config = from_mapping({"recipe": strange, "optim": {"lr": 1e-17}, "model": {"weights": strange}})
    whole, short = (tomllib.loads(to_toml(config, only_changed=flag)) for flag in (False, True))
    keys = {f"{section}.{name}" for section in SECTIONS for name in whole[section]}
    assert keys == options().keys() - absent(config) and whole["head"]["m2"] == 0.5
    changed = {"optim": {"lr": 1e-17}, "model": {"weights": strange}}
    assert short == {"recipe": strange, "description": ""} | changed
    assert from_mapping(whole) == from_mapping(short)
