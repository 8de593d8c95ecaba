"""What is rendered where there is nowhere to render it."""

from __future__ import annotations

import sys

import pytest

from vexport.cli.render import progress


def test_no_progress_on_a_closed_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress() as update:
        update("working", 0.5)
