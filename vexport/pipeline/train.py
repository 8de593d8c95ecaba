"""Recipe to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Checkpoint, Manifest
from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.recipe import ImagesSection, Recipe, load_recipe, recipe_hash
from vexport.workspace import Workspace, hash_file, up_to_date

if TYPE_CHECKING:
    from vexport.train.checkpoints import Position

Progress = Callable[[int, int, Mapping[str, float]], None]
# How the best checkpoint of a recipe ends, as it was trained and as `vexport fuse` names what it makes of it.
TRAINED, DEPLOYED = ".best.ckpt", ".best.deploy.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What training a recipe gave.

    Args:
        best: The averaged weights with most right answers on held-out images, at slope 1.
        last: The state after the last epoch.
        top1: Of the best, averaged weights, on held-out images, per cent.
        seconds: What this call took.
        up_to_date: The same recipe, options and versions had been trained before: nothing was done.
        resumed_from: Epochs that an earlier, interrupted run had finished; None where none was gone on with.
        log: Folder of the log files; None where nothing was done.
        curves: The picture of the run.
        damaged: Images that could not be read.
    """

    best: Checkpoint
    last: Checkpoint
    top1: float
    seconds: float
    up_to_date: bool
    resumed_from: int | None = None
    log: Path | None = None
    curves: Path | None = None
    damaged: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "best": str(self.best.path),
            "last": str(self.last.path),
            "model": self.best.model,
            "epoch": self.best.facts["epoch"],
            "epochs": self.last.facts["epoch"],
            "slope": self.best.facts["slope"],
            "top1": self.top1,
            "correct": self.best.facts["correct"],
            "total": self.best.facts["total"],
            "top1_model": self.best.facts["top1_model"],
            "seconds": round(self.seconds, 3),
            "up_to_date": self.up_to_date,
            "resumed_from": self.resumed_from,
            "log": str(self.log) if self.log else None,
            "curves": str(self.curves) if self.curves else None,
            "damaged": list(self.damaged),
        }


def train_recipe(
    recipe: str | Path,
    *,
    workspace: Workspace,
    overrides: Sequence[str] = (),
    resume: bool = False,
    replace: bool = False,
    force: bool = False,
    on_progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainResult | None:
    """Train a recipe into the workspace.

    Args:
        recipe: A shipped recipe's name, or a path.
        workspace: Where `<recipe>.best.ckpt` and `<recipe>.last.ckpt` go.
        overrides: `section.field=value`, each over the recipe's own.
        resume: Go on from the last checkpoint of an unfinished run of this recipe; start anew where there is none.
        replace: Write over a finished run of this name that was of another recipe.
        force: Start anew whatever run of this name there is (with `resume`: a finished one of this recipe), and replace
            files that vexport did not write.
        on_progress: Called with the epochs done, all epochs, and figures: at the end of an epoch loss, slope, top1,
            top1_model; always images_per_s, data_wait (a share) and eta_s once training runs.
        tell: Told what a reader of the terminal should know.

    Returns:
        The result; None in every process but the first, where several train together.

    Raises:
        RecipeError: there is no such recipe, it has errors, or it does not fit its data or this machine.
        InputError: its model is unknown, its images are too small for it, or another run of this name is in the way.
        MissingDependencyError: the training extra is not installed.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
        WorkspaceError: a file is in the way, the disk is full or the folder may not be written.
    """
    started = time.perf_counter()
    plan = load_recipe(recipe, overrides)
    options = {"recipe": plan.name, "recipe_hash": recipe_hash(plan), **_named_files(plan, workspace)}
    versions = tool_versions("torch", "torchvision", "timm", "lightning", "scikit-learn", "numpy", "pillow")
    done = _finished(plan, workspace, options, versions)
    if done is not None:
        best, last = done
        return TrainResult(best, last, best.facts["top1"], time.perf_counter() - started, up_to_date=True)

    # Here, and not above: importing Lightning takes seconds that an up-to-date run need not wait for.
    from vexport.train.checkpoints import same_recipe
    from vexport.train.fit import fit

    target = workspace.root / f"{plan.name}.last.ckpt"
    before = _find_before(target)
    other = before is not None and not same_recipe(before.manifest.options, options)
    if before is not None and other:
        # --force alone starts anew; with --resume it is not said which of the two is meant.
        if not (force and not resume) and not (replace and before.finished):
            _refuse_other_recipe(before, plan, target)
        tell(f"writing over {target.name}, of another recipe")
        before = None
    elif before is not None and force and not (resume and not before.finished):
        before = None
    if before is not None and before.finished:
        return _other_versions(before, plan, workspace, options, versions, tell)
    if before is not None:
        _go_on(before, plan, target, versions, resume, tell)
        _require_same_start(before, options, target)
        # Of the run that goes on, whatever became of the files that it started from; its images may have moved.
        options = {**before.manifest.options, **({"source": options["source"]} if "source" in options else {})}
    elif resume and not other and not force:
        tell(f"there is no run in {workspace.root} to go on with: this one starts anew")
    position = before.position if before is not None else None
    trained = fit(
        plan,
        workspace.root,
        options=options,
        versions=versions,
        progress=on_progress,
        resume=target if position is not None else None,
        init_from=_start(plan, workspace, tell) if position is None else None,
        force=force,
        tell=tell,
    )
    if trained is None:
        return None
    return TrainResult(
        trained.best,
        trained.last,
        trained.best.facts["top1"],
        time.perf_counter() - started,
        up_to_date=False,
        resumed_from=position.epoch if position is not None else None,
        log=trained.log,
        curves=trained.curves,
        damaged=trained.damaged,
    )


def _named_files(plan: Recipe, workspace: Workspace) -> dict[str, str]:
    """Where the images lie, and hashes of the checkpoints that a recipe names: others make another run."""
    named = {"init_from": plan.network.init_from}
    if plan.qat is not None:
        named["start_from"] = plan.qat.start_from
    if plan.distill is not None:
        named |= {"teacher": plan.distill.teacher, "teacher_weights": plan.distill.checkpoint}
    found = {}
    if isinstance(plan.data, ImagesSection) and plan.data.source is not None:
        source = plan.data.source
        elsewhere = source.partition("/")[0] in ("wds", "hfds")
        found["source"] = source if elsewhere else str(Path(source).expanduser().resolve())
    for what, name in named.items():
        ending = DEPLOYED if what == "start_from" else TRAINED
        file = _checkpoint_named(name, workspace, ending) if name else None
        if file is not None:
            found[what] = hash_file(file)
    return found


def _checkpoint_named(name: str, workspace: Workspace, ending: str) -> Path | None:
    """A file by its path, or the best checkpoint of another recipe in the workspace, as trained or as fused."""
    places = (Path(name), workspace.root / f"{name}{ending}")
    return next((path for path in places if path.is_file()), None)


def _other_versions(
    before: _Before,
    plan: Recipe,
    workspace: Workspace,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    tell: Callable[[str], None],
) -> TrainResult:
    """A run that finished with other versions or from other files: it stands, and what differs is said.

    Raises:
        InputError: its images lay elsewhere, or its best checkpoint is gone.
    """
    from vexport.train.checkpoints import find_whole

    last, best = (workspace.root / f"{plan.name}.{which}.ckpt" for which in ("last", "best"))
    manifest = find_whole(best)
    then = before.manifest.options
    if manifest is None or then.get("source") != options.get("source"):
        what = f"{best} is gone" if manifest is None else f"it was trained on {then.get('source')}"
        raise InputError(
            f"{last} is of a finished run of this recipe, and {what}",
            hint="name the new run with --set name=..., or give --force to train it anew",
        )
    if changed := _changed_versions(before, versions):
        tell(f"note: finished with other versions of {changed}; --force trains it anew")
    if files := [key for key in {**then, **options} if then.get(key) != options.get(key)]:
        tell(f"note: finished with another {' and another '.join(files)}; --force trains it anew")
    facts = manifest.facts
    return TrainResult(
        Checkpoint(best, manifest), Checkpoint(last, before.manifest), facts["top1"], 0.0, up_to_date=True
    )


def _finished(
    plan: Recipe, workspace: Workspace, options: Mapping[str, Any], versions: Mapping[str, str]
) -> tuple[Checkpoint, Checkpoint] | None:
    """Both checkpoints, where the same recipe was trained to its end with the same versions."""
    best, last = (
        up_to_date(
            Checkpoint, workspace.root / f"{plan.name}.{which}.ckpt", parent=None, options=options, versions=versions
        )
        for which in ("best", "last")
    )
    if best is None or last is None or last.facts["epoch"] < plan.epochs:
        return None
    return best, last


@dataclass(frozen=True)
class _Before:
    """What an earlier run left under this recipe's name.

    Args:
        manifest: Of its last checkpoint.
        position: Where it stands.
        recipe: Its recipe, as plain types.
    """

    manifest: Manifest
    position: Position
    recipe: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.position.epoch >= int(self.recipe.get("epochs", 0))


def _find_before(target: Path) -> _Before | None:
    from vexport.train.checkpoints import find_whole, read_position, read_recipe

    manifest = find_whole(target)
    return None if manifest is None else _Before(manifest, read_position(target), read_recipe(target))


def _refuse_other_recipe(before: _Before, plan: Recipe, target: Path) -> None:
    """Refuse to write over a run of another recipe by the same name: it may be days of training.

    Raises:
        InputError: always, with the fields that differ.
    """
    changed = sorted(_differences(before.recipe, plan.to_json()))
    state = "finished run" if before.finished else f"unfinished run, after {before.position.epoch} epochs,"
    raise InputError(
        f"{target} is of a {state} of another recipe",
        details=[f"changed: {line}" for line in changed],
        hint="name the new run with --set name=..., or give --force to write over it"
        + ("" if before.finished else "; undo the changes and give --resume to go on with it"),
    )


def _go_on(
    before: _Before, plan: Recipe, target: Path, versions: Mapping[str, str], resume: bool, tell: Callable[[str], None]
) -> None:
    """See that an unfinished run of this recipe may be gone on with, and say what differs.

    Raises:
        InputError: `--resume` was not given.
    """
    if not resume:
        raise InputError(
            f"{target} is of an unfinished run of this recipe (epoch {before.position.epoch} of {plan.epochs})",
            hint="--resume goes on with it, --force starts anew",
        )
    if changed := _changed_versions(before, versions):
        tell(f"note: {changed} changed since: the weights need not equal those of an uninterrupted run")


def _require_same_start(before: _Before, options: Mapping[str, Any], target: Path) -> None:
    """See that a run does not go on from weights that came from another file than the recipe names now.

    Raises:
        InputError: they did. Where that file is gone, nothing can be told.
    """
    then, now = before.manifest.options.get("start_from"), options.get("start_from")
    if now is not None and then != now:
        raise InputError(
            f"{target} is of a run that started from another qat.start_from",
            details=[f"sha256 {str(then)[:12]} then, {now[:12]} now"],
            hint="--force starts anew from it; to go on with the run, put the file back that it started from",
        )


def _changed_versions(before: _Before, versions: Mapping[str, str]) -> str:
    other = [name for name in versions if before.manifest.versions.get(name) != versions[name]]
    return ", ".join(f"{name} ({before.manifest.versions.get(name)} then)" for name in other)


def _differences(before: Any, now: Any, at: str = "") -> list[str]:
    """Fields of two recipes that differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys((*before, *now)))
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))]
    return [] if before == now else [f"{at}: {before} then, {now} now"]


def _start(plan: Recipe, workspace: Workspace, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint to start from: a path, or the best of another recipe in the workspace.

    Raises:
        InputError: there is none.
    """
    if plan.qat is not None:
        field, named, ending = "qat.start_from", plan.qat.start_from, DEPLOYED
        hint = f"train and fuse this recipe, or give a deployed checkpoint (of vexport fuse) with --set {field}=FILE"
    elif plan.network.init_from is not None:
        field, named, ending = "network.init_from", plan.network.init_from, TRAINED
        hint = (
            f"train it first (vexport train {named}), give a checkpoint with --set {field}=FILE, or start fresh with "
            f"--set {field}=null"
        )
    else:
        return None
    path = _checkpoint_named(named, workspace, ending)
    if path is not None:
        tell(f"starting from {path}")
        return path
    elsewhere = workspace.root / f"{named}{ending}"
    raise InputError(f"{field} {named}: there is neither this file nor {elsewhere}", hint=hint)
