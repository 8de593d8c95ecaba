"""A run from start to end: files, schedule, average, interruption, divergence."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from vexport.errors import InputError, RecipeError, TrainingError, WorkspaceError
from vexport.model.checkpoint import load_checkpoint, load_network
from vexport.pipeline.train import train_recipe
from vexport.recipe import load_recipe
from vexport.train.digits import held_out_arrays
from vexport.train.module import TrainingModule
from vexport.workspace import Workspace, load_artifact, manifest_path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def names(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.root.iterdir() if path.name != "tiny.log")


def test_a_run_writes_two_checkpoints_with_their_facts(tiny, workspace, tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", category=DeprecationWarning)
        warnings.filterwarnings("default", category=FutureWarning)
        result = train_recipe(tiny, workspace=workspace, on_progress=lambda *args: seen.append(args))
    assert capfd.readouterr() == ("", "")
    assert list(elsewhere.iterdir()) == []
    assert names(workspace) == [
        "tiny.best.ckpt",
        "tiny.best.ckpt.json",
        "tiny.last.ckpt",
        "tiny.last.ckpt.json",
    ]
    seen = [row for row in seen if "step" not in row[2]]
    assert [row[:2] for row in seen] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert {"loss", "slope", "top1", "top1_model", "images_per_s", "data_wait", "eta_s"} <= set(seen[-1][2])
    # Steps of 512 images: two an epoch, so the ramp over two epochs has four steps.
    assert [row[2]["slope"] for row in seen[1:]] == [0.25, 0.75, 1.0, 1.0]

    facts, content = result.last.facts, read(result.last.path)
    assert content["epoch"] == facts["epoch"] == 4
    assert facts["form"] == "training"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["total"] == 359
    assert facts["top1"] == 100 * facts["correct"] / 359
    own = content["vexport"]
    assert own["format"] == 1
    assert own["network"] == facts["network"]
    assert own["preprocessing"] == facts["preprocessing"]
    assert own["recipe"] == load_recipe(tiny).to_json()
    assert own["recipe_name"] == "tiny"
    assert own["slope"] == own["slope_ema"] == 1.0
    assert own["top1"] == facts["top1"]
    assert result.best.facts["slope"] == 1.0
    assert result.best.facts["epoch"] in (3, 4)
    assert "optimizer_states" in content
    assert "optimizer_states" not in read(result.best.path)


def test_weights_are_stored_once_under_published_names(tiny, workspace):
    content = read(train_recipe(tiny, workspace=workspace).last.path)
    for key, prefix in (("model", "network."), ("model_ema", "ema.module.")):
        assert "stem1.0.weight" in content[key]
        assert "slope" not in content[key]
        for name, tensor in content[key].items():
            assert tensor.data_ptr() == content["state_dict"][prefix + name].data_ptr()
    batches = [t for n, t in content["model_ema"].items() if n.endswith("num_batches_tracked")]
    assert {(int(t), t.dtype) for t in batches} == {(8, torch.int64)}
    assert not torch.equal(content["model"]["stem1.0.weight"], content["model_ema"]["stem1.0.weight"])


def test_the_toolchain_reads_both_and_counts_the_same_answers(tiny, workspace):
    result = train_recipe(tiny, workspace=workspace)
    images, labels = held_out_arrays(load_recipe(tiny).data)
    for weights, key in (("ema", "correct"), ("model", "correct_model")):
        network, loaded = load_network(result.best.path, weights_from=weights)
        assert loaded.slope == 1.0
        assert loaded.preprocessing.to_json() == result.best.facts["preprocessing"]
        with torch.no_grad():
            answers = network(torch.from_numpy(images)).argmax(1).numpy()
        assert int((answers == labels).sum()) == result.best.facts[key]


def test_the_same_again_is_up_to_date_and_a_change_is_not(tiny, workspace):
    first = train_recipe(tiny, workspace=workspace)
    again = train_recipe(tiny, workspace=workspace)
    assert (first.up_to_date, again.up_to_date) == (False, True)
    assert again.best.sha256 == first.best.sha256
    assert again.to_json()["top1"] == first.top1
    with pytest.raises(InputError, match="a finished run of another recipe") as caught:
        train_recipe(tiny, workspace=workspace, overrides=["seed=1"])
    assert caught.value.details == ("changed: seed: 0 then, 1 now",)
    assert load_artifact(first.last.path) == first.last
    assert not train_recipe(tiny, workspace=workspace, overrides=["seed=1"], force=True).up_to_date
    with pytest.raises(InputError, match="a finished run of another recipe"):
        train_recipe(tiny, workspace=workspace, overrides=["seed=2"], resume=True, force=True)
    told = []
    other = train_recipe(tiny, workspace=workspace, overrides=["seed=2"], resume=True, replace=True, tell=told.append)
    assert not other.up_to_date
    assert told == ["writing over tiny.last.ckpt, of another recipe"]
    assert train_recipe(tiny, workspace=workspace, overrides=["seed=2"], replace=True).up_to_date


def test_a_finished_run_with_other_versions_stands(tiny, workspace):
    first = train_recipe(tiny, workspace=workspace)
    for checkpoint in (first.best, first.last):
        beside = manifest_path(checkpoint.path)
        beside.write_text(
            beside.read_text().replace(f'"timm": "{checkpoint.manifest.versions["timm"]}"', '"timm": "0.9"')
        )
    for resume in (False, True):
        told = []
        again = train_recipe(tiny, workspace=workspace, resume=resume, tell=told.append)
        assert again.up_to_date
        assert again.best.sha256 == first.best.sha256
        assert told == ["note: finished with other versions of timm (0.9 then); --force trains it anew"]
    assert not train_recipe(tiny, workspace=workspace, force=True).up_to_date
    first.best.path.unlink()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"tiny.best.ckpt is gone"):
            train_recipe(tiny, workspace=workspace, resume=resume)
    assert not train_recipe(tiny, workspace=workspace, resume=True, force=True).up_to_date


def test_the_seed_decides_everything(tiny, tmp_path):
    runs = [
        read(train_recipe(tiny, workspace=Workspace(tmp_path / str(i)), overrides=[f"seed={seed}"]).last.path)
        for i, seed in enumerate((5, 5, 6))
    ]
    same, other = [
        all(torch.equal(runs[0][key][name], run[key][name]) for key in ("model", "model_ema") for name in run[key])
        for run in runs[1:]
    ]
    assert same
    assert not other


def test_the_callers_random_state_is_left_alone(tiny, workspace):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    train_recipe(tiny, workspace=workspace)
    assert torch.equal(torch.rand(1), expected)


class StopAt:
    """A progress callback that behaves like Ctrl+C after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, epoch: int, epochs: int, figures: object) -> None:
        if epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupt_passes_and_the_run_goes_on_to_the_same_weights(tiny, workspace, tmp_path, stop, capfd):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, on_progress=StopAt(stop))
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr() == ("", "")
    kept = load_artifact(workspace.root / "tiny.last.ckpt")
    assert kept is not None
    assert kept.facts["epoch"] == stop
    early = load_checkpoint(kept.path)
    assert early.slope == (0.25 if stop == 1 else 1.0)

    seen = []
    with pytest.raises(InputError, match="unfinished run of this recipe"):
        train_recipe(tiny, workspace=workspace)
    resumed = train_recipe(tiny, workspace=workspace, resume=True, on_progress=lambda *args: seen.append(args))
    assert resumed.resumed_from == stop
    assert [row[0] for row in seen if "step" not in row[2]] == list(range(stop, 5))
    straight = train_recipe(tiny, workspace=Workspace(tmp_path / "straight"))
    assert resumed.best.facts == straight.best.facts
    for key in ("model", "model_ema"):
        expected = read(straight.last.path)[key]
        for name, tensor in read(resumed.last.path)[key].items():
            assert torch.equal(tensor, expected[name]), name


def test_a_termination_is_no_success(tiny, workspace):
    def terminate(epoch, epochs, figures):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        train_recipe(tiny, workspace=workspace, on_progress=terminate)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert load_artifact(workspace.root / "tiny.last.ckpt").facts["epoch"] == 1


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny, workspace, monkeypatch):
    honest = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        loss = honest(self, batch, batch_idx)
        if self.global_step == 4:
            self.network.stem1[0].weight.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    with pytest.raises(TrainingError) as caught:
        train_recipe(tiny, workspace=workspace)
    assert caught.value.message == "the loss is nan at step 5 (epoch 2)"
    assert caught.value.details == (f"{workspace.root / 'tiny.last.ckpt'} holds the state after epoch 2",)
    assert names(workspace) == ["tiny.last.ckpt", "tiny.last.ckpt.json"]
    assert all(torch.isfinite(t).all() for t in load_checkpoint(workspace.root / "tiny.last.ckpt").tensors.values())


def test_weights_that_break_in_the_last_step_are_not_kept(tiny, workspace, monkeypatch):
    def break_it(self, outputs, batch, batch_idx):
        self.network.stem1[0].weight.data.fill_(float("inf"))

    monkeypatch.setattr(TrainingModule, "on_train_batch_end", break_it)
    with pytest.raises(TrainingError) as caught:
        train_recipe(tiny, workspace=workspace, overrides=["batch_size=1400"])
    assert "held-out answers of the model weights are not finite after step 1 (epoch 0)" in caught.value.message
    assert caught.value.details == ("no epoch was finished, so there is no checkpoint of this run",)
    assert names(workspace) == []


def test_a_write_that_fails_leaves_the_last_good_file(tiny, workspace, monkeypatch):
    real = torch.save
    calls = []

    def save(content, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(content, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(WorkspaceError, match="no space left"):
        train_recipe(tiny, workspace=workspace)
    assert names(workspace) == ["tiny.last.ckpt", "tiny.last.ckpt.json"]
    assert load_artifact(workspace.root / "tiny.last.ckpt").facts["epoch"] == 1


def test_a_file_in_the_way_is_refused_before_training(tiny, workspace):
    workspace.root.mkdir()
    foreign = workspace.root / "tiny.best.ckpt"
    foreign.write_bytes(b"mine")
    with pytest.raises(WorkspaceError, match="was not written by vexport"):
        train_recipe(tiny, workspace=workspace, on_progress=lambda *_: pytest.fail("training began"))
    assert names(workspace) == ["tiny.best.ckpt"]
    train_recipe(tiny, workspace=workspace, force=True)
    assert load_artifact(foreign) is not None


@pytest.mark.parametrize(
    ("override", "error", "match"),
    [
        ("network.model=vanilanet_5", InputError, "unknown model 'vanilanet_5'"),
        ("data.image_size=16", InputError, "shrinks to nothing"),
        ("batch_size=4000", RecipeError, "more than the 1438 training images"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tiny, workspace, override, error, match):
    with pytest.raises(error, match=match):
        train_recipe(tiny, workspace=workspace, overrides=[override])
    assert names(workspace) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny, workspace):
    with pytest.raises(RecipeError, match="there is none"):
        train_recipe(tiny, workspace=workspace, overrides=["device=cuda"])


@pytest.mark.parametrize("overrides", [["loss.name=ce"], ["optimizer.name=sgd"], ["optimizer.name=lamb"]])
def test_losses_and_optimisers_train(tiny, workspace, overrides):
    seen = []
    train_recipe(tiny, workspace=workspace, overrides=overrides, on_progress=lambda *args: seen.append(args[2]))
    assert all(torch.isfinite(torch.tensor(list(figures.values()))).all() for figures in seen if "top1" in figures)


def test_without_a_ramp_the_slope_is_one_throughout(tiny, workspace):
    result = train_recipe(tiny, workspace=workspace, overrides=["deep_training.decay_epochs=0", "epochs=2"])
    assert result.best.facts["slope"] == 1.0


@pytest.mark.slow
def test_the_quickstart_reaches_its_accuracy(workspace):
    result = train_recipe("quickstart", workspace=workspace)
    assert result.top1 >= 97.0
    assert result.last.facts["top1_model"] >= 97.0
    assert result.last.facts["top1"] >= 97.0
