"""What is rendered where there is nowhere to render it, and on a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vexport.cli.render import progress, remark

BESIDE_A_BAR = """
import time
from vexport.cli.render import progress, remark

with progress() as update:
    update("0/2 runs: n0.s0 epoch 1/2", 0.25)
    time.sleep(0.3)
    remark("the first line")
    time.sleep(0.3)
    remark("the second [1/2] line")
    time.sleep(0.3)
"""

TERMINAL_GONE = """
import sys
from vexport.cli.render import progress, remark

with progress() as update:
    update("working", 0.25)
    sys.stdin.read()
    remark("nobody reads this")
    raise SystemExit(129)
"""


def test_no_progress_on_a_closed_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress() as update:
        update("working", 0.5)
    remark("nobody reads this")


def test_a_remark_to_a_terminal_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    file = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stderr", file)
    remark("nobody reads this")
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
        file.close()


def test_a_remark_stands_on_a_line_of_its_own_beside_the_bar() -> None:
    """On a real terminal: elsewhere there is no bar."""
    pty = pytest.importorskip("pty", reason="has no terminals of this kind")
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TTY_COMPATIBLE")}
    process = subprocess.Popen(
        [sys.executable, "-c", BESIDE_A_BAR],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait() == 0, written
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines = re.split(r"[\r\n]+", plain)
    assert any("0/2 runs: n0.s0 epoch 1/2" in line for line in lines), "there is a bar"
    assert [line for line in lines if "line" in line] == ["the first line", "the second [1/2] line"]


def test_a_bar_on_a_terminal_that_is_gone_hides_no_exit_code() -> None:
    pty = pytest.importorskip("pty", reason="has no terminals of this kind")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TERMINAL_GONE]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    while b"working" not in written:
        written += os.read(ours, 4096)
    os.close(ours)
    process.communicate()  # closes its standard input: it goes on
    assert process.returncode == 129
