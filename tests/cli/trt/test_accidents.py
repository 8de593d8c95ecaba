"""`vexport trt` killed, interrupted, out of space or started twice at once: what stands afterwards is whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke, files_of
from vexport.workspace import hash_file

from .conftest import A100, ENGINE

RUN = "import sys; sys.argv[0] = 'vexport'; from vexport.__main__ import main; main()"
SLOW = """
import sys, time
import vexport.{module} as module
def slowly(*args, **kwargs):
    print("{what}", flush=True)
    time.sleep(60)
{where} = slowly
"""


def in_a_process(code: str, *args: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def before(invoke: Invoke, graph: Path, folder: Path) -> dict[str, str]:
    """The folder's files and their hashes once another engine stands in it."""
    assert invoke("trt", "--fp16", *A100, "-o", "other.engine", "--max-batch", "2").exit_code == 0
    return files_of(folder)


def test_two_builds_at_once(graph: Path, folder: Path) -> None:
    both = [in_a_process(RUN, "trt", "--fp16", *A100, "--json") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    told = [json.loads(out) for out, _ in said]
    assert told[0]["manifest"]["sha256"] == told[1]["manifest"]["sha256"] == hash_file(ENGINE)
    built = [not (one["from_cache"] or one["up_to_date"]) for one in told]
    assert sum(built) == 1
    assert not [name for name in files_of(folder) if ".vexport-" in name]


@pytest.mark.parametrize(
    ("module", "where"),
    [("engine.build", "module._build"), ("workspace", "module.Staging.publish")],
    ids=["in the builder", "before the engine stands"],
)
def test_killed_during_a_build(invoke: Invoke, before: dict[str, str], folder: Path, module: str, where: str) -> None:
    code = SLOW.format(module=module, what="under way", where=where) + RUN
    process = in_a_process(code, "trt", "--fp16", *A100)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    after = {name: sha for name, sha in files_of(folder).items() if "/.vexport-" not in name}
    assert after == before
    assert "from the cache" in invoke("trt", "--fp16", *A100, "-o", "again.engine", "--max-batch", "2").stdout
    result = invoke("trt", "--fp16", *A100)
    assert "built in" in result.stdout


def test_interrupted_in_the_builder(before: dict[str, str], folder: Path) -> None:
    code = """
import os, signal, threading
import vexport.engine.build as build
class Monitor(build._Monitor):
    def step(self, phase, step):
        if not self.cancelled and not hasattr(self, "told"):
            self.told = True
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)
        return super().step(phase, step)
build._Monitor = Monitor
"""
    process = in_a_process(code + RUN, "trt", "--fp16", *A100)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert files_of(folder) == before


def test_full_disk(before: dict[str, str], folder: Path) -> None:
    limit = 50_000

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = in_a_process(RUN, "trt", "--fp16", *A100, preexec_fn=small_files)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "no space left to write vexport-out/ckpt.fp16.sm80.engine" in said
    assert "hint: free some space" in said
    assert files_of(folder) == before


def test_what_a_killed_process_left_long_ago_is_removed(invoke: Invoke, graph: Path) -> None:
    old, new = (graph.parent / f".vexport-{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    past = time.time() - 2 * 24 * 3600
    os.utime(old, (past, past))
    assert invoke("trt", *A100).exit_code == 0
    assert (old.exists(), new.exists()) == (False, True)
