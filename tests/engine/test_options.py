"""What is asked of an engine: profiles from whatever part of one is given, and what makes no sense."""

from __future__ import annotations

import pytest

from vexport.engine.build import BuildOptions
from vexport.errors import InputError


@pytest.mark.parametrize(
    ("asked", "batches"),
    [
        ({}, (1, 1, 8)),
        ({"opt_batch": 16}, (1, 16, 16)),
        ({"opt_batch": 4}, (1, 4, 8)),
        ({"min_batch": 4}, (4, 4, 8)),
        ({"min_batch": 32}, (32, 32, 32)),
        ({"max_batch": 4}, (1, 1, 4)),
        ({"min_batch": 1, "opt_batch": 1, "max_batch": 8}, (1, 1, 8)),
    ],
)
def test_a_profile_from_what_is_given(asked: dict[str, int], batches: tuple[int, int, int]) -> None:
    options = BuildOptions("fp16", **asked)  # type: ignore[arg-type]
    assert options.batches == batches
    assert tuple(options.to_json()[f"{name}_batch"] for name in ("min", "opt", "max")) == batches


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_batch": 0}, "batches 0, 0, 8 are no profile"),
        ({"opt_batch": 4, "max_batch": 2}, "batches 1, 4, 2 are no profile"),
        ({"max_batch": 0}, "batches 1, 1, 0 are no profile"),
        ({"min_batch": 9, "max_batch": 8}, "batches 9, 9, 8 are no profile"),
        ({"level": 6}, "--opt-level 6"),
        ({"size": 0}, "--size 0"),
        ({"memory_mb": 0}, "--memory-mb 0"),
    ],
)
def test_what_makes_no_sense(asked: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions("fp16", **asked)  # type: ignore[arg-type]
