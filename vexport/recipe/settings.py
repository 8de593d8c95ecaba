"""Settings of a recipe as `section.field=value`: written from sections, and what field each is of."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import yaml


def as_settings(section: Mapping[str, Any]) -> list[str]:
    """Each field of a section, and of those within, as `section.field=value` with the value in YAML."""
    return [f"{'.'.join(keys)}={_as_yaml(value)}" for keys, value in flatten(section)]


def flatten(section: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Sections within sections as fields: `network: {model: x}` is `network.model: x`."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            for keys, inner in flatten(value):
                yield (str(key), *keys), inner
        else:
            yield (str(key),), value


def field_of(setting: str) -> str:
    """The dotted field of a setting."""
    return setting.partition("=")[0].strip()


def without(settings: Sequence[str], fields: Container[str]) -> list[str]:
    """Settings, less those of some fields."""
    return [text for text in settings if field_of(text) not in fields]


def are_related(field: str, other: str) -> bool:
    """Whether one of two dotted fields is the other, or is inside it."""
    return f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}.")


def _as_yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**16)
    return text.strip().removesuffix("...").strip()
