"""Recipes: from YAML to frozen models, with every error at once and the line it stands on.

A recipe's first line is a comment with the command that runs it. One that ships with the package is named without a
path (`quickstart`); anything else is a path.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vexport.errors import RecipeError

Location = tuple[str, ...]
Finding = tuple[Location, str]
# The line on which each field stands; 0 for one that an override set.
Lines = dict[Location, int]


def _no_bool(value: object) -> object:
    # Python counts True as 1, and YAML reads `yes` and `on` as True.
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {str(value).lower()}")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Share = Annotated[Float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkSection(_Section):
    """Which network: a variant, at another width or n where wanted; the data give classes and channels."""

    model: str
    width: Annotated[Float, Field(gt=0)] = 1.0
    act_num: Annotated[Int, Field(ge=0)] = 3
    drop_rate: Annotated[Float, Field(ge=0, lt=1)] = 0.0


class DeepTrainingSection(_Section):
    """The slope's ramp from 0 to 1 over `decay_epochs` (0: none, the slope is 1 throughout), then held."""

    decay_epochs: Annotated[Float, Field(ge=0)] = 100.0
    decay: Literal["linear", "cosine"] = "linear"
    per: Literal["step", "epoch"] = "epoch"


class AugmentSection(_Section):
    """Random affine moves of the training images: degrees, and shares of the size and of the side."""

    rotate_deg: Annotated[Float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    shift: Share = 0.0


class DataSection(_Section):
    """scikit-learn's digits: which share is held out, from which seed, and the side they are enlarged to."""

    name: Literal["digits"]
    held_out: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    image_size: Annotated[Int, Field(ge=8, le=256)] = 32
    augment: AugmentSection = AugmentSection()


class OptimizerSection(_Section):
    """Optimiser; one-dimensional tensors and biases get no weight decay."""

    name: Literal["adamw", "lamb", "sgd"] = "lamb"
    lr: Annotated[Float, Field(gt=0)]
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0


class ScheduleSection(_Section):
    """Learning rate: linear warm-up, then half a cosine down to `min_lr`."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 5.0
    min_lr: Annotated[Float, Field(ge=0)] = 0.0


class LossSection(_Section):
    """Cross-entropy, or the paper's binary cross-entropy per class."""

    name: Literal["bce", "ce"] = "bce"
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.1


class EmaSection(_Section):
    """Moving average of the weights; with `warmup` its decay grows from 0, so that a short run averages its end."""

    decay: Annotated[Float, Field(ge=0, lt=1)] = 0.9999
    warmup: bool = True


class Recipe(_Section):
    """Everything that a training run depends on.

    Args:
        name: Stem of the files that it writes; the recipe file's stem unless given.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    epochs: Annotated[Int, Field(ge=1)]
    batch_size: Annotated[Int, Field(ge=2)]  # BatchNorm after the head's pool needs two values per channel
    device: Literal["auto", "cpu", "cuda"] = "auto"
    network: NetworkSection
    deep_training: DeepTrainingSection = DeepTrainingSection()
    data: DataSection
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    loss: LossSection = LossSection()
    ema: EmaSection = EmaSection()

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain types, defaults included."""
        return self.model_dump(mode="json")


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of a recipe's content; comments, order and spelling of numbers do not matter."""
    text = json.dumps(recipe.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipes_folder() -> Path:
    """The folder of the recipes that ship with the package: inside a wheel, beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a shipped recipe's name, or of a path.

    Raises:
        RecipeError: there is none.
    """
    text, path = str(name_or_path), Path(name_or_path)
    named = len(path.parts) == 1 and path.suffix not in (".yaml", ".yml")
    found = recipes_folder() / f"{text}.yaml" if named else path
    if found.is_file():
        return found
    if not named and path.is_dir():
        raise RecipeError(f"{path} is a folder", hint="name the recipe's file")
    shipped = shipped_recipes()
    near = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the recipes that ship with vexport: {', '.join(shipped) or 'none'}"
    raise RecipeError(f"unknown recipe '{text}'" if named else f"there is no recipe {path}", hint=hint)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name_or_path: A shipped recipe's name, or a path.
        overrides: `section.field=value`, the value in YAML; the last of two for one field counts.

    Raises:
        RecipeError: there is no such recipe, or it has errors; each is a line of `details`.
    """
    path = find_recipe(name_or_path)
    data, lines, duplicates = _read(path)
    data.setdefault("name", path.stem)
    refused = [line for override in overrides for line in _override(data, lines, override)]
    findings: list[Finding] = []
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        findings = [_in_words(item) for item in error.errors(include_url=False)]
    else:
        findings = _check_together(recipe)
        if not (refused or duplicates or findings):
            return recipe
    located = sorted(duplicates + [(_line_of(lines, at), at, message) for at, message in findings])
    details = refused + [
        f"{f'{path}:{line}:' if line else '--set'} {'.'.join(at)}: {message}" for line, at, message in located
    ]
    count = f"{len(details)} error{'s' if len(details) > 1 else ''}"
    raise RecipeError(f"{path} has {count}", details=details, hint="correct the lines above")


def _read(path: Path) -> tuple[dict[str, Any], Lines, list[tuple[int, Location, str]]]:
    """A recipe's data, where each of its fields stands, and its duplicate keys."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read", details=[str(error.strerror)], hint="check the file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        text = error.problem or error.context
        raise RecipeError(f"{path} is not YAML", details=[f"{line}: {text}"], hint="correct this line") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML", details=[f"{path}: {text}"], hint="a recipe is a text file") from error
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds a {type(data).__name__}, not fields"
        raise RecipeError(f"{path} {what}", hint=f"a recipe has the fields {', '.join(Recipe.model_fields)}")
    assert node is not None, "there are data"
    lines: Lines = {(): 1}
    duplicates: list[tuple[int, Location, str]] = []
    _walk(node, (), lines, duplicates, set())
    return data, lines, duplicates


def _walk(
    node: yaml.Node, at: Location, lines: Lines, duplicates: list[tuple[int, Location, str]], seen: set[int]
) -> None:
    if id(node) in seen:  # an alias: its fields stand where the anchor is; also ends an anchor that contains itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*at, str(index))
            lines[here] = item.start_mark.line + 1
            _walk(item, here, lines, duplicates, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*at, str(key.value)), key.start_mark.line + 1
            if here in lines:
                duplicates.append((line, here, f"given before, on line {lines[here]}"))
            lines[here] = line
            _walk(value, here, lines, duplicates, seen)


def _override(data: dict[str, Any], lines: Lines, override: str) -> list[str]:
    """Set one field in `data`; what is wrong with the request itself."""
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        return [f"--set {override}: should be section.field=value"]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        return [f"--set {dotted}: {' '.join(str(error).split())}"]
    target = data
    for depth, part in enumerate(path[:-1]):
        inner = target.get(part)
        if inner is not None and not isinstance(inner, dict):
            return [f"--set {dotted}: {'.'.join(path[: depth + 1])} is a value and has no fields"]
        # A copy: two fields of a recipe may be one object, through an anchor.
        target[part] = dict(inner) if inner else {}
        lines.setdefault(path[: depth + 1], 0)
        target = target[part]
    target[path[-1]] = value
    for inside in [key for key in lines if key[: len(path)] == path]:
        del lines[inside]
    lines[path] = 0
    return []


def _in_words(item: Mapping[str, Any]) -> Finding:
    """Where one of pydantic's errors is, and what it says in plain words."""
    at = tuple(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = _fields_at(at[:-1])
        near = difflib.get_close_matches(at[-1], fields, n=1, cutoff=0.6)
        guess = f"; did you mean {near[0]}?" if near else ";"
        return at, f"no such field{guess} fields are {', '.join(fields)}"
    if item["type"] == "missing":
        return at, "needed, and not given"
    if item["type"] == "string_pattern_mismatch":
        return at, "should be letters, digits, '_', '-' and '.' (give `name` where the file's name is not)"
    if item["type"] in ("model_type", "dict_type"):
        return at, f"should be a section with the fields {', '.join(_fields_at(at))}"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    given = item["input"]
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and "not" not in message else ""
    return at, message + shown


def _fields_at(at: Location) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in at:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def _line_of(lines: Lines, at: Location) -> int:
    """The line of a field, or of the nearest section around it."""
    return next(lines[at[:length]] for length in range(len(at), -1, -1) if at[:length] in lines)


def _check_together(recipe: Recipe) -> list[Finding]:
    """What is wrong between fields that are right on their own."""
    findings: list[Finding] = []
    decay_epochs = recipe.deep_training.decay_epochs
    if decay_epochs > recipe.epochs - 1:
        message = f"{decay_epochs:g} leaves no epoch of {recipe.epochs} at slope 1, where the network can be merged"
        findings.append((("deep_training", "decay_epochs"), message))
    if recipe.schedule.warmup_epochs >= recipe.epochs:
        message = f"{recipe.schedule.warmup_epochs:g} should be less than the {recipe.epochs} epochs"
        findings.append((("schedule", "warmup_epochs"), message))
    if recipe.schedule.min_lr >= recipe.optimizer.lr:
        message = f"{recipe.schedule.min_lr:g} should be less than optimizer.lr, {recipe.optimizer.lr:g}"
        findings.append((("schedule", "min_lr"), message))
    return findings
