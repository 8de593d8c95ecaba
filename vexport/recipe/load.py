"""From YAML to a recipe, with every error at once and the line it stands on.

A recipe's first line is a comment with the command that runs it. One that ships with the package is named without a
path (`quickstart`); anything else is a path. `inherits` names another one whose fields hold where it says nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vexport.errors import RecipeError
from vexport.recipe.checks import Finding, Location, check_together
from vexport.recipe.sections import Recipe

# The file and line in which each field stands; None for one that an override set.
Place = tuple[Path, int] | None
Lines = dict[Location, Place]
R = TypeVar("R", bound=BaseModel)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of what shapes the weights.

    Comments, order and spelling of numbers do not matter, nor how the work is shared, where the images lie, and when
    checkpoints are written.
    """
    plain = recipe.to_json()
    left_out = ["device", "compute.devices", "checkpoint", "data.source", "data.max_damaged"]
    if not str(plain["data"].get("source")).startswith("wds/"):  # there each worker shuffles its own shards
        left_out.append("data.workers")
    for dotted in left_out:
        *sections, field = dotted.split(".")
        section = plain
        for name in sections:
            section = section[name]
        section.pop(field, None)
    # Recipes that are older than these keep their hash.
    if plain["qat"] is None:
        del plain["qat"]
    for name, usual in (("techniques", "both"), ("shortcut", "none"), ("init", "published")):
        if plain["network"][name] == usual:
            del plain["network"][name]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipes_folder() -> Path:
    """The folder of the recipes that ship with the package: inside a wheel, beside the package in a checkout."""
    package = Path(__file__).parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes(folder: str = ".") -> list[str]:
    """Names of the recipes that ship with the package, in a folder of theirs."""
    return sorted(path.stem for path in (recipes_folder() / folder).glob("*.yaml"))


def find_recipe(name_or_path: str | Path, folder: str = ".") -> Path:
    """The file of a shipped recipe's name, or of a path.

    Args:
        name_or_path: Which.
        folder: In which those of its kind ship.

    Raises:
        RecipeError: there is none.
    """
    text, path = str(name_or_path), Path(name_or_path)
    named = len(path.parts) == 1 and path.suffix not in (".yaml", ".yml")
    found = recipes_folder() / folder / f"{text}.yaml" if named else path
    if found.is_file():
        return found
    if not named and path.is_dir():
        raise RecipeError(f"{path} is a folder", hint="name the recipe's file")
    shipped = shipped_recipes(folder)
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
    return load_as(Recipe, find_recipe(name_or_path), overrides, check_together)


def load_as(kind: type[R], path: Path, overrides: Sequence[str], check: Callable[[R], list[Finding]]) -> R:
    """Read a recipe of any kind.

    Args:
        kind: Its fields.
        path: The file.
        overrides: See `load_recipe`.
        check: What is wrong between fields that are right on their own.

    Raises:
        RecipeError: it has errors; each is a line of `details`.
    """
    data, lines, duplicates = _read(path, kind)
    data.setdefault("name", path.stem)  # before what it inherits could give one
    _inherit(data, lines, duplicates, path, kind)
    refused = [line for override in overrides for line in _override(data, lines, override)]
    findings: list[Finding] = []
    try:
        recipe = kind.model_validate(data)
    except ValidationError as error:
        findings = _as_one([_in_words(item, data, kind) for item in error.errors(include_url=False)])
    else:
        findings = check(recipe)
        if not (refused or duplicates or findings):
            return recipe
    located = duplicates + [(_place_of(lines, at), at, message) for at, message in findings]
    located.sort(key=lambda found: (found[0] is not None, (found[0] or (path, 0))[0] != path, found[0] or (), found[1]))
    details = refused + [
        f"{f'{place[0]}:{place[1]}:' if place else '--set'} {'.'.join(at)}: {message}" for place, at, message in located
    ]
    count = f"{len(details)} error{'s' if len(details) > 1 else ''}"
    raise RecipeError(f"{path} has {count}", details=details, hint="correct the lines above")


def _read(path: Path, kind: type[BaseModel]) -> tuple[dict[str, Any], Lines, list[tuple[Place, Location, str]]]:
    """A recipe's data, where each of its fields stands, and its duplicate keys."""
    duplicates: list[tuple[int, Location, str]] = []
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is not None:
                _find_duplicates(node, (), duplicates, set())
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
        raise RecipeError(f"{path} {what}", hint=f"a recipe has the fields {', '.join(kind.model_fields)}")
    assert node is not None, "there are data"
    lines: dict[Location, int] = {(): 1}
    _walk(node, (), lines, set())
    placed: Lines = {at: (path, line) for at, line in lines.items()}
    return data, placed, [((path, line), at, message) for line, at, message in duplicates]


def _inherit(
    data: dict[str, Any],
    lines: Lines,
    duplicates: list[tuple[Place, Location, str]],
    path: Path,
    kind: type[BaseModel],
    seen: tuple[Path, ...] = (),
) -> None:
    """Fill in, in place, what the recipe named by `inherits` says and this one does not.

    Raises:
        RecipeError: there is none of that name, or it inherits from itself.
    """
    named = data.pop("inherits", None)
    place = lines.pop(("inherits",), None)
    if named is None:
        return
    where = f"{path}:{place[1] if place else 1}"
    if not isinstance(named, str):
        raise RecipeError(f"{where}: inherits: should be a recipe's name", hint="as in `inherits: base/imagenet`")
    candidates = [folder / f"{named.removesuffix('.yaml')}.yaml" for folder in (path.parent, recipes_folder())]
    base = next((found for found in candidates if found.is_file()), None)
    if base is None:
        known = ", ".join(sorted(f"base/{found.stem}" for found in recipes_folder().glob("base/*.yaml")))
        raise RecipeError(
            f"{where}: inherits: there is no recipe '{named}'", hint=f"beside this file, or one of {known}"
        )
    if base.resolve() in (path.resolve(), *seen):
        raise RecipeError(f"{where}: inherits: {named} inherits from itself", hint="break the circle")
    below, below_lines, below_duplicates = _read(base, kind)
    _inherit(below, below_lines, below_duplicates, base, kind, (path.resolve(), *seen))
    duplicates += below_duplicates
    _fill(data, below, lines, below_lines, ())


def _fill(data: dict[str, Any], below: dict[str, Any], lines: Lines, below_lines: Lines, at: Location) -> None:
    """Take over each field that is not there, in place; sections are filled, lists are not."""
    for key, value in below.items():
        here = (*at, str(key))
        other_kind = here == ("data",) and isinstance(value, dict) and _kind(data.get(key)) not in (None, _kind(value))
        if key in data and isinstance(data[key], dict) and isinstance(value, dict) and not other_kind:
            data[key] = dict(data[key])  # a copy: two sections may be one object, through an anchor
            _fill(data[key], value, lines, below_lines, here)
        elif key not in data:
            data[key] = value
            lines.update({inside: line for inside, line in below_lines.items() if inside[: len(here)] == here})


def _kind(section: object) -> object:
    return section.get("name") if isinstance(section, dict) else section


def _find_duplicates(
    node: yaml.Node, at: Location, duplicates: list[tuple[int, Location, str]], seen: set[int]
) -> None:
    """Keys that stand twice in one section. Those that come with `<<` are not there before construction."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _find_duplicates(item, (*at, str(index)), duplicates, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[Location, int] = {}
        for key, value in node.value:
            here, line = (*at, str(key.value)), key.start_mark.line + 1
            if here in first:
                duplicates.append((line, here, f"given before, on line {first[here]}"))
            first.setdefault(here, line)
            _find_duplicates(value, here, duplicates, seen)


def _walk(node: yaml.Node, at: Location, lines: dict[Location, int], seen: set[int]) -> None:
    """The line of each field, also of those that came with `<<`."""
    if id(node) in seen:  # an alias: its fields stand where the anchor is; also ends an anchor that contains itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*at, str(index))
            lines[here] = item.start_mark.line + 1
            _walk(item, here, lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, seen)


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
        lines.setdefault(path[: depth + 1], None)
        target = target[part]
    target[path[-1]] = value
    for inside in [key for key in lines if key[: len(path)] == path]:
        del lines[inside]
    lines[path] = None
    return []


def _in_words(item: Mapping[str, Any], data: Mapping[str, Any], kind: type[BaseModel]) -> Finding:
    """Where one of pydantic's errors is, and what it says in plain words."""
    at = _without_tags(tuple(str(part) for part in item["loc"]))
    if item["type"] == "extra_forbidden":
        fields = _fields_at(at[:-1], data, kind)
        near = difflib.get_close_matches(at[-1], fields, n=1, cutoff=0.6)
        guess = f"; did you mean {near[0]}?" if near else ";"
        return at, f"no such field{guess} fields are {', '.join(fields)}"
    if item["type"] == "missing":
        return at, "needed, and not given"
    if item["type"] == "union_tag_not_found":
        return (*at, "name"), f"needed, and not given: {' or '.join(_kinds())}"
    if item["type"] == "union_tag_invalid":
        return (*at, "name"), f"should be {' or '.join(_kinds())}, not {item['ctx']['tag']!r}"
    if item["type"] == "string_pattern_mismatch":
        return at, "should be letters, digits, '_', '-' and '.' (give `name` where the file's name is not)"
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return at, f"should be a section with the fields {', '.join(_fields_at(at, data, kind))}"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    given = item["input"]
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and "not" not in message else ""
    return at, message + shown


def _without_tags(at: Location) -> Location:
    """Pydantic puts the kind of data, and the alternative of a choice, into the location; the file has neither."""
    if len(at) > 1 and at[0] == "data" and at[1] in _kinds():
        at = (at[0], *at[2:])
    return tuple(part for part in at if "[" not in part and part not in ("int", "float", "str"))


def _as_one(findings: list[Finding]) -> list[Finding]:
    """What a field can be, where it can be several things and is none of them, in one line."""
    joined: dict[Location, list[str]] = {}
    for at, message in findings:
        joined.setdefault(at, []).append(message)
    return [(at, "; or ".join(messages)) for at, messages in joined.items()]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can be: one, or several kinds of it."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [section for inner in get_args(annotation) for section in _sections(inner)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _kinds() -> list[str]:
    """What `data.name` can be."""
    sections = _sections(Recipe.model_fields["data"].annotation)
    return [str(get_args(section.model_fields["name"].annotation)[0]) for section in sections]


def _fields_at(at: Location, data: Mapping[str, Any], kind: type[BaseModel]) -> list[str]:
    section = kind
    given: Any = data
    for part in at:
        given = given.get(part) if isinstance(given, Mapping) else None
        choices = _sections(section.model_fields[part].annotation)
        kinds = dict(zip(_kinds(), choices, strict=False)) if part == "data" else {}
        section = kinds.get(str(_kind(given)), choices[0])
    return list(section.model_fields)


def _place_of(lines: Lines, at: Location) -> Place:
    """The place of a field, or of the nearest section around it."""
    return next(lines[at[:length]] for length in range(len(at), -1, -1) if at[:length] in lines)
