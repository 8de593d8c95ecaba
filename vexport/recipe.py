"""Recipes: YAML to frozen models, with every error at once and its line."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vexport.errors import RecipeError

Location = tuple[str | int, ...]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """What is learnt from.

    Args:
        name: `digits`: scikit-learn's 1797 handwritten digits of 8x8.
        size: Height and width of the network's input.
        held_out: Images that training never sees.
        split_seed: Decides which.
        shift: Pixels of the input by which training images move at random.
    """

    name: Literal["digits"] = "digits"
    size: int = Field(32, ge=8)
    held_out: int = Field(360, ge=10, le=1000)
    split_seed: int = 0
    shift: int = Field(0, ge=0)


class DeepTrainingSection(_Section):
    """Ramp of the activation slope from 0 to 1 (paper, section 3.1).

    Args:
        decay_epochs: Length of the ramp; 0 starts at slope 1.
        decay: `linear` or `cosine`.
        per: Whether the slope moves with every `step` or every `epoch`.
    """

    decay_epochs: int = Field(ge=0)
    decay: Literal["linear", "cosine"] = "linear"
    per: Literal["step", "epoch"] = "step"


class OptimizerSection(_Section):
    """timm's optimiser, and a cosine schedule after a linear warm-up."""

    name: Literal["lamb", "adamw", "sgd"] = "lamb"
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_epochs: int = Field(0, ge=0)


class Recipe(_Section):
    """Everything that a training run depends on.

    Args:
        model: Variant.
        width: Width multiplier.
        act_num: n of the series activation.
        data: See DataSection.
        epochs: Passes over the training images.
        batch_size: Images per step.
        seed: Of weights, order and augmentation.
        deep_training: See DeepTrainingSection.
        optimizer: See OptimizerSection.
        label_smoothing: Share of the target spread over all classes.
        drop_rate: Dropout before the head.
        ema_decay: Of the moving average of the weights.
    """

    model: str
    width: float = Field(1.0, gt=0)
    act_num: int = Field(3, ge=0)
    data: DataSection
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    seed: int = 0
    deep_training: DeepTrainingSection
    optimizer: OptimizerSection
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    drop_rate: float = Field(0.0, ge=0, lt=1)
    ema_decay: float = Field(0.99, ge=0, lt=1)


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).with_name("recipes")
    return inside if inside.is_dir() else Path(__file__).parent.with_name("recipes")


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of a recipe's content, whatever the order and comments of its file."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def recipe_name(name_or_path: str) -> str:
    """What the artifacts of a recipe are called."""
    return Path(name_or_path).stem if _is_path(name_or_path) else name_or_path


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name (of those shipped) or by path.

    Args:
        name_or_path: `quickstart`, or the path of a .yaml file.
        overrides: `optimizer.lr=1e-3` and the like; they win over the file.

    Raises:
        RecipeError: there is no such recipe, or it has errors; every one is listed with its line.
    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not text", hint="a recipe is a YAML file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            f"{path} is not YAML", details=[f"{line}{problem}"], hint="mend the syntax at that line"
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path} holds no recipe", hint="a recipe is a mapping: `model: vanillanet_5` and so on")
    lines = dict(_lines(root, ()))
    data = yaml.safe_load(text)
    problems = [f"{path}:{line}: {key}: given twice" for key, line in _duplicates(root, "")]
    data, origins, wrong = _apply(data, overrides)
    problems += wrong
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        for item in error.errors():
            problems.append(_describe(path, item["loc"], item["type"], item["msg"], lines, origins))
    if problems:
        count = "an error" if len(problems) == 1 else f"{len(problems)} errors"
        raise RecipeError(f"{path} has {count}", details=problems, hint="mend these lines; nothing was started")
    return recipe


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def _find(name: str) -> Path:
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"no such file: {path}", hint=f"shipped recipes go by name: {', '.join(_shipped())}")
        return path
    path = recipes_folder() / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, _shipped(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_shipped())}; or give a path"
        raise RecipeError(f"no recipe '{name}'", hint=hint)
    return path


def _shipped() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def _lines(node: yaml.Node, at: Location) -> Iterator[tuple[Location, int]]:
    """Line of every key, by its place."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)


def _duplicates(node: yaml.Node, at: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.value in seen:
            yield f"{at}{key.value}", key.start_mark.line + 1
        seen.add(key.value)
        yield from _duplicates(value, f"{at}{key.value}.")


def _apply(data: Any, overrides: Sequence[str]) -> tuple[Any, dict[Location, str], list[str]]:
    """Data with overrides put in, where each came from, and those that make no sense."""
    origins: dict[Location, str] = {}
    wrong = []
    for override in overrides:
        place, equals, value = override.partition("=")
        keys = tuple(place.strip().split("."))
        if not equals or not all(keys):
            wrong.append(f"--set {override}: write it as optimizer.lr=1e-3")
            continue
        inner = data
        for key in keys[:-1]:
            inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            wrong.append(f"--set {override}: {'.'.join(keys[:-1])} holds no fields")
            continue
        try:
            inner[keys[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            wrong.append(f"--set {override}: the value is not YAML")
            continue
        origins[keys] = f"--set {place.strip()}"
    return data, origins, wrong


def _describe(
    path: Path, place: Location, kind: str, message: str, lines: Mapping[Location, int], origins: Mapping[Location, str]
) -> str:
    dotted = ".".join(str(key) for key in place)
    where = origins.get(place)
    if where is None:
        known = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 1)
        where = f"{path}:{known}: {dotted}"
    if kind == "extra_forbidden":
        return f"{where}: no such field; the fields are {', '.join(_fields(place[:-1]))}"
    return f"{where}: {message[0].lower()}{message[1:]}"


def _fields(place: Location) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in place:
        inner = section.model_fields[str(key)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
