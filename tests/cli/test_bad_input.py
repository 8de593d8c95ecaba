"""Bad input: exit 1, `error:` and `hint:`, the same as JSON, no traceback, nothing written, inputs untouched."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vexport.workspace import Staging, read_manifest

from .conftest import Invoke, Save, State, files_of

Refused = Callable[..., str]
DEPLOYED = Path("vexport-out/ckpt.deploy.safetensors")


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def fail(error: BaseException) -> Callable[..., Any]:
    def raising(*_: Any, **__: Any) -> Any:
        raise error

    return raising


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_missing_path(refused: Refused, command: str) -> None:
    assert "no such file: nowhere.pth" in refused(command, "nowhere.pth")


def test_missing_path_in_a_process(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vexport", "fuse", "nowhere.pth"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no such file: nowhere.pth\nhint: give the path of a checkpoint\n"
    assert not files_of(folder)


@pytest.mark.parametrize("name", ["notes.txt", "notes.pth", "notes.safetensors"])
@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_text_is_not_a_checkpoint(refused: Refused, folder: Path, command: str, name: str) -> None:
    (folder / name).write_text("epoch 3 was the best\n")
    assert f"error: {name} is not a" in refused(command, name)


@pytest.mark.parametrize(("content", "says"), [([1, 2], "holds a list"), ({"epoch": 3}, "holds no weights")])
def test_no_weights(refused: Refused, folder: Path, content: Any, says: str) -> None:
    torch.save(content, folder / "other.pth")
    assert says in refused("fuse", "other.pth")


def test_another_network(refused: Refused, folder: Path) -> None:
    torch.save({"conv1.weight": torch.ones(2, 2), "fc.weight": torch.ones(2, 2)}, folder / "other.pth")
    said = refused("fuse", "other.pth")
    assert "is not a VanillaNet checkpoint" in said
    assert "conv1.weight, fc.weight" in said


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated(refused: Refused, save: Save, state: State, legacy: bool, share: float) -> None:
    path = save(state, legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    said = refused("fuse", path)
    assert "truncated" in said or "damaged" in said
    assert "again" in said


def test_truncated_safetensors(refused: Refused, invoke: Invoke, ckpt: Path, folder: Path) -> None:
    invoke("fuse", ckpt, "-o", "whole.safetensors")
    content = (folder / "whole.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(content[: len(content) // 2])
    assert "not a whole safetensors file" in refused("onnx", "half.safetensors")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_is_named_and_not_run(refused: Refused, save: Save, folder: Path, legacy: bool) -> None:
    path = save({"stem1.0.weight": RunsCode()}, legacy=legacy)
    said = refused("fuse", path)
    assert "code that would run" in said
    assert "system is not on the allow-list" in said
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickle_is_not_run(refused: Refused, folder: Path, protocol: int) -> None:
    (folder / "ckpt.pth").write_bytes(pickle.dumps(RunsCode(), protocol=protocol))
    refused("fuse", "ckpt.pth")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_wrong_variant(refused: Refused, ckpt: Path, command: str) -> None:
    said = refused(command, ckpt, "--model", "vanillanet_9")
    assert "is a vanillanet_5, not a vanillanet_9" in said
    assert "--model vanillanet_5" in said


def test_every_tensor_that_does_not_fit_is_listed(refused: Refused, save: Save, state: State) -> None:
    del state["stages.0.conv1.0.bias"], state["cls1.2.weight"]
    state["stages.1.act.weight"] = state["stages.1.act.weight"][:, :, 1:, 1:]
    state["cls2.0.bias"] = state["cls2.0.bias"][:-1]
    state["stages.2.extra.weight"] = torch.ones(2, 3)
    said = refused("fuse", save(state))
    assert "nothing was loaded" in said
    assert {line.strip() for line in said.splitlines()[1:-1]} == {
        "missing: stages.0.conv1.0.bias 16",
        "missing: cls1.2.weight 10x128x1x1",
        "unexpected: stages.2.extra.weight 2x3",
        "wrong shape: stages.1.act.weight is 64x1x6x6, must be 64x1x7x7",
        "wrong shape: cls2.0.bias is 9, must be 10",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(refused: Refused, save: Save, state: State, value: float) -> None:
    state["stages.1.conv2.0.weight"][3, 5] = value
    state["cls2.0.bias"][:2] = value
    said = refused("fuse", save(state))
    assert "stages.1.conv2.0.weight: 1 of 2048 values are NaN or infinite" in said
    assert "cls2.0.bias: 2 of 10" in said


def test_negative_variance(refused: Refused, save: Save, state: State) -> None:
    state["stem1.1.running_var"][4] = -0.5
    assert "stem1.1.running_var: 1 variances are negative, the least is -0.5" in refused("fuse", save(state))


@pytest.mark.parametrize("command", ["fuse", "onnx"])
@pytest.mark.parametrize(("linear", "slope"), [(True, "0.25"), (False, "0.146447")])
def test_slope_below_1(refused: Refused, save: Save, state: State, command: str, linear: bool, slope: str) -> None:
    said = refused(command, save(state, epoch=25, decay_linear=linear))
    assert f"the activation slope is {slope}:" in said
    assert "--assume-slope-1" in said


def test_slope_below_1_can_be_overridden(invoke: Invoke, save: Save, state: State) -> None:
    result = invoke("fuse", save(state, epoch=50), "--assume-slope-1")
    assert result.exit_code == 0
    assert "assumed to be 1 although it is 0.5" in result.stderr
    manifest = read_manifest(DEPLOYED)
    assert manifest is not None
    assert manifest.facts["slope"] == "assumed 1"


def test_object_detection(refused: Refused, folder: Path, state: State) -> None:
    held = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"neck.convs.0.weight": torch.ones(1)}
    torch.save({"state_dict": held | {"bbox_head.fc.weight": torch.ones(1)}}, folder / "det.pth")
    said = refused("fuse", "det.pth")
    assert "object-detection" in said
    assert "bbox_head, neck" in said


@pytest.mark.parametrize("name", ["ckpt.pth", "ckpt.safetensors", "ckpt.onnx"])
@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_empty_file(refused: Refused, folder: Path, command: str, name: str) -> None:
    (folder / name).touch()
    assert f"{name} is empty" in refused(command, name)


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_folder(refused: Refused, folder: Path, command: str) -> None:
    (folder / "run.pth").mkdir()
    assert "run.pth is a folder" in refused(command, "run.pth")


def test_not_readable(refused: Refused, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def guarded_open(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        # Only the command's own first look at it: the test reads the file as well.
        if self == ckpt and not self.is_absolute():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded_open)
    assert "cannot be read: Permission denied" in refused("fuse", ckpt)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_no_permission(refused: Refused, ckpt: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", fail(OSError(code, os.strerror(code))))
    assert f"no permission to write {DEPLOYED}" in refused("fuse", ckpt)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind root")
def test_no_permission_for_real(refused: Refused, ckpt: Path, folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o500)
    assert "no permission to write" in refused("fuse", ckpt, "--workspace", "closed")


@pytest.mark.skipif(os.name != "posix", reason="files are synced on POSIX only")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk(refused: Refused, ckpt: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", fail(OSError(code, os.strerror(code))))
    assert f"no space left to write {DEPLOYED}" in refused("fuse", ckpt)


def test_full_disk_at_the_manifest(refused: Refused, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", fail(OSError(errno.ENOSPC, "full")))
    assert "no space left" in refused("fuse", ckpt)


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_unknown_model(refused: Refused, ckpt: Path, command: str) -> None:
    said = refused(command, ckpt, "--model", "vanilanet_9")
    assert said == "error: unknown model 'vanilanet_9'\nhint: did you mean vanillanet_9?"


def test_unknown_model_near_nothing(refused: Refused) -> None:
    assert "`vexport models`" in refused("onnx", "--model", "xyz")


@pytest.mark.parametrize(("command", "target"), [("fuse", DEPLOYED), ("onnx", DEPLOYED.with_name("ckpt.onnx"))])
def test_file_in_the_way(refused: Refused, invoke: Invoke, ckpt: Path, command: str, target: Path) -> None:
    if command == "onnx":  # the merge before the export is done first, and stays
        invoke("fuse", ckpt)
    target.parent.mkdir(exist_ok=True)
    target.write_text("somebody's work")
    said = refused(command, ckpt)
    assert f"{target} is in the way: it was not written by vexport" in said
    assert "--force" in said


def test_manifest_in_the_way(refused: Refused, ckpt: Path) -> None:
    DEPLOYED.parent.mkdir()
    DEPLOYED.with_name(DEPLOYED.name + ".json").write_text("{}")
    assert f"{DEPLOYED}.json is in the way" in refused("fuse", ckpt)


def test_changed_since_vexport_wrote_it(refused: Refused, invoke: Invoke, ckpt: Path) -> None:
    invoke("fuse", ckpt)
    with DEPLOYED.open("ab") as stream:
        stream.write(b"x")
    assert "was changed since vexport wrote it" in refused("fuse", ckpt)


def test_force_overrides_what_is_in_the_way(invoke: Invoke, ckpt: Path) -> None:
    DEPLOYED.parent.mkdir()
    DEPLOYED.write_text("somebody's work")
    assert invoke("fuse", ckpt, "--force").exit_code == 0
    assert invoke("fuse", ckpt).stdout.splitlines()[-1].startswith("up to date")


def test_a_folder_in_the_way(refused: Refused, ckpt: Path) -> None:
    DEPLOYED.mkdir(parents=True)
    assert f"{DEPLOYED} is a folder" in refused("fuse", ckpt)


def test_a_file_as_workspace(refused: Refused, ckpt: Path) -> None:
    assert "is not a folder" in refused("fuse", ckpt, "--workspace", ckpt)


def test_over_itself(refused: Refused, ckpt: Path) -> None:
    assert "cannot be written over itself" in refused("fuse", ckpt, "--output", ckpt)


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_graph_for_a_checkpoint(refused: Refused, folder: Path, command: str) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])),
        folder / "net.onnx",
    )
    assert "net.onnx is an ONNX graph, not a checkpoint" in refused(command, "net.onnx")


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_no_network(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail(URLError("no route to host")))
    said = refused(command, "--model", "vanillanet_9")
    assert "the published weights of vanillanet_9 cannot be downloaded" in said
    assert "no route to host" in said
    assert "--weights random" in said
    assert "path" in said


def test_no_network_for_a_baseline(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, "create_model", fail(OSError("no route to host")))
    assert "--weights random" in refused("onnx", "--model", "resnet50")


def test_nothing_to_take(refused: Refused) -> None:
    assert "there is no checkpoint in vexport-out" in refused("fuse")
    assert "there is no checkpoint in vexport-out" in refused("onnx")


@pytest.mark.parametrize("option", ["--batch", "--size"])
def test_not_positive(refused: Refused, ckpt: Path, option: str) -> None:
    assert f"{option} 0 is not positive" in refused("onnx", ckpt, option, "0")


def test_no_such_opset(refused: Refused, invoke: Invoke, ckpt: Path) -> None:
    invoke("fuse", ckpt)
    assert "opset 5 is not supported" in refused("onnx", "--opset", "5")


def test_no_images(refused: Refused, ckpt: Path, folder: Path) -> None:
    (folder / "photos").mkdir()
    assert "there is no image in photos" in refused("fuse", ckpt, "--images", "photos")
    assert "does not exist" in refused("fuse", ckpt, "--images", "pictures")


def test_a_damaged_image(refused: Refused, ckpt: Path, folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.png").write_bytes(b"\x89PNG")
    assert "photos/cat.png cannot be read" in refused("fuse", ckpt, "--images", "photos")


@pytest.mark.parametrize("where", ["writing", "publishing"])
def test_interrupt_leaves_nothing(
    invoke: Invoke, ckpt: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = files_of(folder)
    if where == "writing":

        def half(path: Path, *_: Any) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr("vexport.pipeline.fuse.write_deployed", half)
    else:
        monkeypatch.setattr(Staging, "publish", fail(KeyboardInterrupt()))
    result = invoke("fuse", ckpt)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert files_of(folder) == before


def test_interrupt_keeps_what_was_there(
    invoke: Invoke, ckpt: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("fuse", ckpt)
    before = files_of(folder)
    monkeypatch.setattr(os, "fsync", fail(KeyboardInterrupt()))
    assert invoke("fuse", ckpt, "--from", "model").exit_code == 130
    assert files_of(folder) == before


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_real_interrupt(ckpt: Path, folder: Path) -> None:
    before = files_of(folder)
    # The process signals itself with the file written and not yet published, then would wait for a minute.
    script = (
        "import os, signal, sys, time\n"
        "from vexport import workspace\n"
        "def publish(self, *_):\n"
        "    assert self.path.stat().st_size > 0\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "workspace.Staging.publish = publish\n"
        "sys.argv = ['vexport', 'fuse', 'ckpt.pth']\n"
        "from vexport.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_of(folder) == before
