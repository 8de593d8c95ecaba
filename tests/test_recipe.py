"""Recipes: every error at once, with its line and the fields that exist; overrides; the recipes that ship."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from vexport.errors import RecipeError
from vexport.model.variants import VARIANTS
from vexport.recipe import (
    DigitsSection,
    ImagesSection,
    Recipe,
    find_recipe,
    load_recipe,
    recipe_hash,
    recipes_folder,
    shipped_recipes,
)

GOOD = """\
epochs: 4
batch_size: 8
network: {model: vanillanet_5}
deep_training: {decay_epochs: 1}
data: {name: digits}
optimizer:
  lr: 1.0e-3
schedule: {warmup_epochs: 1}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def details(path: Path | str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.hint
    return [line.replace(f"{path}:", "") for line in caught.value.details]


def test_good(write: Write) -> None:
    recipe = load_recipe(write(GOOD))
    assert (recipe.name, recipe.epochs, recipe.optimizer.lr) == ("mine", 4, 1e-3)
    assert recipe.deep_training.decay == "linear"
    with pytest.raises(ValidationError):
        recipe.epochs = 5


def test_every_error_at_once(write: Write) -> None:
    text = """\
epochs: 0
batch_size: many
network:
  modle: vanillanet_5
data: digits
optimizer:
  lr: .nan
  name: adam
  nesterov: true
colour: red
"""
    found = details(write(text))
    assert len(found) == 9
    assert any(line.startswith("1: epochs: ") and "greater than or equal to 1" in line for line in found)
    assert any(line.startswith("2: batch_size: ") and "'many'" in line for line in found)
    assert "3: network.model: needed, and not given" in found
    expected = "4: network.modle: no such field; did you mean model? fields are model, width, act_num, drop_rate"
    assert any(line.startswith(expected) for line in found)
    data = next(line for line in found if line.startswith("5: data: "))
    assert "section with the fields name, held_out, split_seed, image_size, augment" in data
    assert any(line.startswith("7: optimizer.lr: ") and "finite" in line for line in found)
    assert any(line.startswith("8: optimizer.name: ") and "'lamb'" in line for line in found)
    assert any(
        line.startswith("9: optimizer.nesterov: no such field; fields are name, lr, weight_decay") for line in found
    )
    assert any(line.startswith("10: colour: no such field; fields are name, seed, epochs") for line in found)


def test_sections_that_are_not_given(write: Write) -> None:
    needed = ("batch_size", "data", "network", "optimizer")
    assert sorted(details(write("epochs: 3\n"))) == [f"1: {name}: needed, and not given" for name in needed]


def test_duplicates(write: Write) -> None:
    found = details(write(GOOD + "epochs: 5\noptimizer: {lr: 1, lr: 2}\n"))
    assert "9: epochs: given before, on line 1" in found
    assert "10: optimizer: given before, on line 6" in found
    assert "10: optimizer.lr: given before, on line 10" in found


@pytest.mark.parametrize(
    ("text", "line"), [("epochs: [1\nb: 2\n", 2), ("a: b: c\n", 1), ("a: 1\n\tb: 2\n", 2), ("a: *nowhere\n", 1)]
)
def test_not_yaml(write: Write, text: str, line: int) -> None:
    path = write(text)
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)
    assert details(path)[0].startswith(f"{line}: ")


def test_yaml_never_runs_code(write: Write, tmp_path: Path) -> None:
    path = write(f"epochs: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    assert details(path)
    assert not (tmp_path / "ran").exists()


def test_binary(write: Write) -> None:
    path = write("")
    path.write_bytes(b"\x80\x02\xff\x00")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("# only\n", "is empty"), ("- 1\n", "holds a list")])
def test_no_fields(write: Write, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(write(text))
    assert "epochs" in caught.value.hint


def test_true_is_no_number(write: Write) -> None:
    assert details(write(GOOD.replace("epochs: 4", "epochs: yes"))) == ["1: epochs: should be a number, not true"]


def test_checked_together(write: Write) -> None:
    overrides = ["deep_training.decay_epochs=4", "schedule.warmup_epochs=4", "schedule.min_lr=1"]
    found = sorted(details(write(GOOD), overrides))
    assert "--set deep_training.decay_epochs: 4 leaves no epoch of 4 at slope 1" in found[0]
    assert "--set schedule.min_lr" in found[1]
    assert "--set schedule.warmup_epochs" in found[2]
    assert len(found) == 3
    assert details(write(GOOD.replace("decay_epochs: 1", "decay_epochs: 3.5")))[0].startswith("4: deep_training.")


def test_overrides(write: Write) -> None:
    recipe = load_recipe(write(GOOD), ["optimizer.lr=0.5", "optimizer.lr=2e-1", "ema.warmup=false", "name=other"])
    assert (recipe.optimizer.lr, recipe.ema.warmup, recipe.name) == (0.2, False, "other")
    assert recipe.epochs == 4


def test_bad_overrides_are_all_told(write: Write) -> None:
    overrides = ["epochs", "=3", "epochs.lr=3", "optimizer.lr=[1", "optimizer.lamb=3", "seed=-1"]
    found = details(write(GOOD), overrides)
    assert len(found) == 6
    assert "--set epochs: should be section.field=value" in found
    assert "--set epochs.lr: epochs is a value and has no fields" in found
    assert any(line.startswith("--set optimizer.lamb: no such field") for line in found)
    assert any(line.startswith("--set seed: ") for line in found)


def test_override_of_an_anchored_section_changes_one_place(write: Write) -> None:
    text = GOOD + "loss: &a {label_smoothing: 0.2}\n"
    recipe = load_recipe(write(text), ["loss.label_smoothing=0.3"])
    assert recipe.loss.label_smoothing == 0.3


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b"])
def test_name_is_a_stem(write: Write, name: str) -> None:
    assert details(write(GOOD), [f"name='{name}'"])[0].startswith("--set name: ")


def test_unknown_recipe() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'quickstrat'") as caught:
        load_recipe("quickstrat")
    assert caught.value.hint == "did you mean quickstart?"
    with pytest.raises(RecipeError, match="unknown recipe 'zzz'") as caught:
        load_recipe("zzz")
    assert "quickstart" in caught.value.hint


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "quickstart.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)


def test_quickstart_ships() -> None:
    assert "quickstart" in shipped_recipes()
    assert find_recipe("quickstart") == recipes_folder() / "quickstart.yaml"


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    wanted = f"# vexport train {name}" + ("" if name == "quickstart" else " --data DIR")
    assert lines[0] == wanted, "a recipe's first line is the command that runs it"


# The supplement's table 2, in the code's values where the two differ: learning rate, weight decay, mixup, layer-wise
# decay, test crop, decay of the average, and the network that it starts from.
PUBLISHED = {
    "vanillanet_5": (3.5e-3, 0.35, 0.1, None, 0.875, 0.99996, None),
    "vanillanet_6": (4.8e-3, 0.32, 0.15, 0.8, 0.875, 0.99996, None),
    "vanillanet_7": (4.7e-3, 0.35, 0.4, 0.8, 0.875, 0.99996, None),
    "vanillanet_8": (3.5e-3, 0.3, 0.4, None, 0.875, 0.99996, None),
    "vanillanet_9": (3.5e-3, 0.3, 0.4, None, 0.875, 0.99996, None),
    "vanillanet_10": (3.5e-3, 0.25, 0.4, None, 0.875, 0.99996, None),
    "vanillanet_11": (3.5e-3, 0.3, 0.8, None, 0.875, 0.99992, "vanillanet_10"),
    "vanillanet_12": (3.5e-3, 0.3, 0.8, None, 0.95, 0.99992, "vanillanet_11"),
    "vanillanet_13": (3.5e-3, 0.3, 0.8, 0.8, 0.95, 0.99992, "vanillanet_12"),
    "vanillanet_13_x1_5": (3.5e-3, 0.3, 0.8, 0.8, 0.95, 0.99992, None),
    "vanillanet_13_x1_5_ada_pool": (3.5e-3, 0.3, 0.8, 0.8, 0.95, 0.99992, None),
}


def test_every_variant_has_a_recipe() -> None:
    assert PUBLISHED.keys() == VARIANTS.keys()
    assert set(shipped_recipes()) - PUBLISHED.keys() == {"cifar10", "cifar10_qat", "quickstart", "vanillanet_13_n4_kd"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe.data, ImagesSection)
    augment = recipe.data.augment
    found = (
        recipe.optimizer.lr,
        recipe.optimizer.weight_decay,
        augment.mixup,
        recipe.optimizer.layer_decay,
        recipe.data.crop_pct,
        recipe.ema.decay,
        recipe.network.init_from,
    )
    assert found == PUBLISHED[name]
    assert (recipe.name, recipe.network.model) == (name, name)
    assert (recipe.epochs, recipe.batch_size, recipe.schedule.warmup_epochs) == (300, 1024, 5)
    assert (recipe.optimizer.name, recipe.optimizer.betas, recipe.loss.name) == ("lamb", (0.9, 0.999), "bce")
    assert (recipe.deep_training.decay_epochs, recipe.deep_training.decay) == (100, "linear")
    assert (augment.auto_augment, augment.cutmix, augment.color_jitter) == ("rand-m7-mstd0.5-inc1", 1.0, 0.4)
    assert (augment.random_erasing, recipe.loss.label_smoothing, recipe.network.drop_rate) == (0.25, 0.1, 0.05)
    assert (recipe.compute.precision, recipe.compute.micro_batch) == ("fp16", 128)
    assert (recipe.optimizer.eps, recipe.schedule.min_lr) == (1e-8, 1e-6)
    assert VARIANTS[name].crop_pct == recipe.data.crop_pct


def test_what_a_recipe_inherits(write: Write, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("seed: 7\nepochs: 9\noptimizer: {lr: 1.0e-2, weight_decay: 0.3}\n")
    path = write("inherits: below\n" + GOOD)
    recipe = load_recipe(path)
    assert (recipe.seed, recipe.epochs, recipe.name) == (7, 4, "mine")
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-3, 0.3)
    assert recipe_hash(recipe) == recipe_hash(load_recipe(write(GOOD + "seed: 7\n"), ["optimizer.weight_decay=0.3"]))


def test_errors_in_what_is_inherited_are_placed_there(write: Write, tmp_path: Path) -> None:
    below = tmp_path / "below.yaml"
    below.write_text("seed: -1\noptimizer:\n  weight: 0.3\nschedule: {warmup_epochs: 1, warmup_epochs: 2}\n")
    path = write("inherits: below\n" + GOOD + "colour: red\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    found = [line.partition(": ")[0] for line in caught.value.details]
    assert f"{path}:{len(GOOD.splitlines()) + 2}" in found[0], "the recipe's own errors come first"
    assert {f"{below}:1", f"{below}:3", f"{below}:4"} <= {entry.rpartition(":")[0] or entry for entry in found} | set(
        found
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("inherits: nothing\n", "there is no recipe 'nothing'"),
        ("inherits: mine\n", "inherits from itself"),
        ("inherits: [1]\n", "should be a recipe's name"),
    ],
)
def test_what_cannot_be_inherited(write: Write, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(write(text + GOOD))
    assert "mine.yaml:1: inherits" in caught.value.message


def test_another_kind_of_data_is_not_mixed_with_what_is_inherited(write: Write) -> None:
    recipe = load_recipe(write("inherits: base/imagenet\n" + GOOD))
    assert isinstance(recipe.data, DigitsSection)
    assert recipe.deep_training.decay == "linear"
    found = details(write("inherits: base/imagenet\n" + GOOD.replace("name: digits", "name: digits, crop_pct: 1")))
    assert "no such field; fields are name, held_out" in found[0]


def test_kinds_of_data(write: Write) -> None:
    other = GOOD.replace("name: digits", "name: letters")
    assert details(write(other)) == ["5: data.name: should be digits or images, not 'letters'"]
    assert details(write(GOOD.replace("name: digits", "held_out: 0.1"))) == [
        "5: data.name: needed, and not given: digits or images"
    ]
    images = GOOD.replace("name: digits", "name: images, image_sise: 3, workers: -1, augment: {mixup: -1}")
    found = details(write(images))
    assert any("data.image_sise: no such field; did you mean image_size?" in line for line in found)
    assert any(line.startswith("5: data.workers: should be greater") for line in found)
    assert any(line.startswith("5: data.augment.mixup: should be greater") for line in found)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("compute.micro_batch=3", "--set compute.micro_batch: batch_size 8 should be a multiple of 3"),
        ("compute.devices=zero", "--set compute.devices: should be a valid integer"),
        ("compute.devices=zero", "; or should be 'auto', not 'zero'"),
        ("compute.devices=0", "--set compute.devices: should be"),
        ("compute.precision=fp64", "--set compute.precision: should be 'fp32', 'fp16' or 'bf16'"),
        ("checkpoint.every_steps=0", "--set checkpoint.every_steps: should be greater than or equal to 1"),
        ("network.stem_stride=9", "--set network.stem_stride: should be less than or equal to 8"),
        ("distill.weight=0.5", "distill.teacher: needed, and not given"),
    ],
)
def test_bounds_of_newer_sections(write: Write, override: str, says: str) -> None:
    assert any(says in line for line in details(write(GOOD), [override]))


def test_mixing_needs_pairs(write: Write) -> None:
    images = GOOD.replace("name: digits", "name: images, augment: {mixup: 0.1, scale: [0.5, 0.2]}")
    found = details(write(images), ["batch_size=9"])
    assert "--set batch_size: 9 should be even: mixup and cutmix pair images" in found
    assert any("data.augment.scale: 0.5 should not be above 0.2" in line for line in found)


def test_the_hash_does_not_depend_on_how_the_work_is_shared(write: Write) -> None:
    path = write(GOOD.replace("name: digits", "name: images"))
    first = recipe_hash(load_recipe(path))
    for override in (
        "compute.devices=2",
        "data.workers=0",
        "data.source=/elsewhere",
        "data.max_damaged=50",
        "checkpoint.every_steps=3",
        "device=cpu",
    ):
        assert recipe_hash(load_recipe(path, [override])) == first, override
    assert recipe_hash(load_recipe(path, ["data.source=wds//x", "data.workers=0"])) != first
    assert recipe_hash(load_recipe(path, ["compute.micro_batch=4"])) != first


def test_hash_is_of_the_content(write: Write) -> None:
    first = recipe_hash(load_recipe(write(GOOD)))
    reordered = "# a comment\nname: mine\n" + "\n".join(
        reversed(GOOD.replace("optimizer:\n  lr", "optimizer.lr").split("\n"))
    )
    reordered = reordered.replace("optimizer.lr: 1.0e-3", "optimizer: {lr: 0.001}")
    assert recipe_hash(load_recipe(write(reordered))) == first
    assert recipe_hash(load_recipe(write(GOOD + "seed: 0\n"))) == first, "a default that is written out"
    assert recipe_hash(load_recipe(write(GOOD), ["seed=1"])) != first


def test_what_quantisation_aware_training_asks_for(write: Write) -> None:
    found = details(write(GOOD), ["qat.images=0", "qat.method=max"])
    assert sorted(found) == [
        "--set qat.images: should be greater than or equal to 1, not 0",
        "--set qat.method: should be 'minmax', 'percentile', 'entropy' or 'mse', not 'max'",
        "--set qat.start_from: needed, and not given",
    ]
    start = ["qat.start_from=x.safetensors", "deep_training.decay_epochs=0", "schedule.warmup_epochs=0", "epochs=1"]
    plan = load_recipe(write(GOOD), start)
    assert plan.qat is not None
    assert (plan.qat.start_from, plan.qat.images, plan.qat.method) == ("x.safetensors", 512, "mse")
    found = details(
        write(GOOD), [*start, "deep_training.decay_epochs=1", "network.init_from=y", "compute.precision=bf16"]
    )
    assert sorted(found) == [
        "--set compute.precision: bf16 should be fp32 with qat: steps of INT8 would be rounded once more",
        "--set deep_training.decay_epochs: should be 0 with qat: the deployed form has no slope",
        "--set network.init_from: should be null with qat, which starts from qat.start_from",
    ]
    assert recipe_hash(load_recipe(write(GOOD), start)) != recipe_hash(load_recipe(write(GOOD), start[1:]))


def test_the_shipped_recipe_starts_from_what_it_inherits() -> None:
    base, fine = load_recipe("cifar10"), load_recipe("cifar10_qat")
    assert fine.qat is not None
    assert fine.qat.start_from == "cifar10"
    assert (fine.network, fine.data, fine.loss, fine.batch_size) == (
        base.network,
        base.data,
        base.loss,
        base.batch_size,
    )
    assert fine.optimizer.lr == base.optimizer.lr / 10


def test_hash_does_not_drift() -> None:
    """A changed hash makes every trained checkpoint out of date: change this figure only on purpose."""
    recipe = Recipe.model_validate(
        {
            "name": "fixed",
            "epochs": 4,
            "batch_size": 8,
            "network": {"model": "vanillanet_5"},
            "data": {"name": "digits"},
            "optimizer": {"lr": 0.5},
        }
    )
    assert recipe_hash(recipe) == "11849915acf7fc982d86ff5d360a0d3bb47d0d2d2882ad10c7c88c2a23473b65"


def test_errors_stand_in_the_order_of_the_file_after_those_of_set(write: Write) -> None:
    found = details(write(GOOD + "x: 1\n1: 2\nepochs: 0\n"), ["optimizer.lr=0", "nothing"])
    assert [line.partition(": ")[0] for line in found] == ["--set nothing", "--set optimizer.lr", "9", "10", "11", "11"]


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 1\n", "a: 2024-13-45\n", "[" * 5000])
def test_what_yaml_itself_cannot_make_sense_of(write: Write, text: str) -> None:
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(write(text))


def test_an_anchor_that_contains_itself_ends(write: Write) -> None:
    assert details(write(GOOD + "seed: &a [*a]\n"))[0].startswith("9: seed: should be a valid integer")
