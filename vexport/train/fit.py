"""From a recipe to its trained checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from vexport.artifacts import Checkpoint
from vexport.deps import needs
from vexport.errors import RecipeError, TrainingError
from vexport.model.ablation import make_ablation_spec
from vexport.model.build import Network, Spec, build_network
from vexport.model.variants import make_spec
from vexport.recipe import Recipe, is_ablation
from vexport.train.average import AverageWeights
from vexport.train.checkpoints import PlainCheckpointIO, Position, Targets, WriteCheckpoints, read_position
from vexport.train.data import TrainingData, load_data
from vexport.train.devices import Devices, find_devices
from vexport.train.loading import CountDamaged, Loading, steps_per_epoch
from vexport.train.log import Progress, Report, Watch, draw_curves, log_folder, make_loggers, next_run
from vexport.train.losses import make_loss
from vexport.train.manners import interrupts_pass, quiet
from vexport.train.module import Schedule, TrainingModule
from vexport.train.observe import MeasureRanges
from vexport.train.ranks import is_first_process
from vexport.train.sampling import Layout
from vexport.train.seeding import callers_random_state, seed_all
from vexport.train.slope import SlopeSchedule
from vexport.train.start import make_network
from vexport.workspace import stage

with needs("train"):
    from lightning.pytorch import Callback, Trainer

Tell = Callable[[str], None]
PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Trained:
    """A finished run, as the first process sees it.

    Args:
        best: The checkpoint to fuse.
        last: The state after the last epoch.
        log: Folder of the log files.
        curves: The picture of loss, accuracy, learning rate and slope.
        damaged: Files that could not be read.
    """

    best: Checkpoint
    last: Checkpoint
    log: Path
    curves: Path | None
    damaged: tuple[str, ...]


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    progress: Progress | None = None,
    resume: Path | None = None,
    init_from: Path | None = None,
    force: bool = False,
    tell: Tell = lambda _: None,
) -> Trained | None:
    """Train a recipe's network; the same recipe gives the same weights on one machine.

    Args:
        recipe: What to train.
        folder: Where `<recipe>.best.ckpt` and `<recipe>.last.ckpt` go, each with its manifest, and the log files.
        options: The request, for the manifests.
        versions: Of the libraries that shape the weights, likewise.
        progress: See `Watch`.
        resume: A last checkpoint of the same recipe to go on from.
        init_from: A checkpoint whose weights are the start: as far as they fit, and with `qat` all of them.
        force: Replace files that vexport did not write.
        tell: Told what a reader of the terminal should know.

    Returns:
        The run; None in every process but the first.

    Raises:
        RecipeError: the recipe does not fit its data or this machine.
        InputError: the recipe's model is unknown, its images are too small for it, or too many are damaged.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
        WorkspaceError: a file is in the way, the disk is full or the folder may not be written.
        KeyboardInterrupt: the user stopped it; the last checkpoint is kept.
    """
    targets = Targets.of(recipe.name, folder)
    if is_first_process():
        for target in (targets.best, targets.last):
            with stage(target, force=force):
                pass  # what would refuse the files after the first epoch refuses them now
    devices = find_devices(recipe)
    position = read_position(resume) if resume else Position(run=next_run(folder, recipe.name))
    with quiet(), interrupts_pass(), callers_random_state():
        data = load_data(recipe)
        layout = Layout.of(recipe.batch_size, recipe.compute.micro_batch, devices.world)
        steps = steps_per_epoch(data, layout)
        if data.mixes_labels and layout.micro_batch % 2:
            raise RecipeError(
                f"{layout.micro_batch} images go through the network at once on each of {layout.world} devices: mixup "
                "and cutmix pair images",
                hint="choose a batch_size that leaves each device an even number",
            )
        _require_same_data(position, data, recipe)
        spec = _spec(recipe, data)
        seed_all(recipe.seed)
        network = make_network(recipe, spec, data, None if resume else init_from, tell)
        module = _module(recipe, spec, data, layout, network, _card(recipe, spec, data, versions, position.run))
        damaged = CountDamaged(data.max_damaged, tell, recipe.checkpoint.every_steps)
        writer = WriteCheckpoints(
            targets,
            options=options,
            facts=_facts(spec, data, rounded=recipe.qat is not None),
            versions=versions,
            every_steps=recipe.checkpoint.every_steps,
            force=force,
        )
        ramp = recipe.deep_training
        watch = Watch()
        callbacks: list[Callback] = [
            *([MeasureRanges(recipe, data, tell)] if recipe.qat is not None else []),
            SlopeSchedule(ramp.decay_epochs, decay=ramp.decay, per=ramp.per),
            damaged,
            AverageWeights(),
            watch,
            writer,
        ]
        if progress is not None and is_first_process():
            callbacks.append(Report(progress, watch))
        log = log_folder(folder, recipe.name, position.run)
        trainer = _trainer(recipe, devices, layout, callbacks, log, steps if data.streamed else None)
        loading = Loading(data, layout, recipe.seed, epoch=position.epoch, start=position.steps * layout.accumulate)
        try:
            trainer.fit(module, datamodule=loading, ckpt_path=resume)
        except TrainingError as error:
            error.details = (*error.details, _kept(targets) if resume or writer.wrote else NOTHING_KEPT)
            raise
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the device's memory is too small for {layout.micro_batch} images at once"
                if not trainer.validating
                else "the device's memory is too small for the held-out images beside what training keeps there",
                details=[*str(error).splitlines()[:1], _kept(targets) if resume or writer.wrote else NOTHING_KEPT],
                hint="lower compute.micro_batch; gradients are then accumulated over more of them",
            ) from error
        finally:
            for logger in trainer.loggers:
                with contextlib.suppress(OSError):
                    logger.finalize("stopped")
    if not trainer.is_global_zero:
        return None
    assert writer.best is not None, "load_recipe leaves an epoch at slope 1"
    assert writer.last is not None
    title = f"{recipe.name}: {spec.label}, best {writer.best.facts['top1']:.1f} % held out"
    return Trained(writer.best, writer.last, log, draw_curves(log, title), tuple(damaged.names))


def _spec(recipe: Recipe, data: TrainingData) -> Spec:
    network = recipe.network
    channels, height, width = data.preprocessing.input_size
    if is_ablation(recipe):
        ablation = make_ablation_spec(
            network.model,
            techniques=network.techniques,
            shortcut=network.shortcut,
            width=network.width,
            act_num=network.act_num,
            num_classes=len(data.class_names),
            in_chans=channels,
            image_size=height,
            stem_stride=network.stem_stride,
        )
        with torch.device("meta"):
            build_network(ablation)  # refuses images that are too small
        return ablation
    spec = make_spec(
        network.model,
        width=network.width,
        stem_stride=network.stem_stride,
        act_num=network.act_num,
        num_classes=len(data.class_names),
        in_chans=channels,
    )
    with torch.device("meta"):
        build_network(spec).feature_sizes(height, width)  # refuses images that are too small
    return spec


def _facts(spec: Spec, data: TrainingData, *, rounded: bool) -> dict[str, Any]:
    return {
        "model": spec.variant,
        "form": "deployed" if rounded else "training",
        **({"trained_for": "int8"} if rounded else {}),
        "network": spec.to_json(),
        "preprocessing": data.preprocessing.to_json(),
        "classes": list(data.class_names),
    }


def _card(recipe: Recipe, spec: Spec, data: TrainingData, versions: Mapping[str, str], run: int) -> dict[str, Any]:
    return {
        "network": spec.to_json(),
        "preprocessing": data.preprocessing.to_json(),
        "class_names": list(data.class_names),
        "images": len(data.train),  # type: ignore[arg-type]
        "recipe": recipe.to_json(),
        "recipe_name": recipe.name,
        "versions": dict(versions),
        "run": run,
    }


def _module(
    recipe: Recipe,
    spec: Spec,
    data: TrainingData,
    layout: Layout,
    network: Network,
    card: Mapping[str, Any],
) -> TrainingModule:
    chosen, compute = recipe.optimizer, recipe.compute

    def make_optimizer(network: nn.Module) -> Optimizer:
        # SGD knows neither.
        more: dict[str, Any] = {} if chosen.name == "sgd" else {"betas": chosen.betas}
        if chosen.eps is not None and chosen.name != "sgd":
            more["eps"] = chosen.eps
        made: Optimizer = create_optimizer_v2(
            network,
            opt=chosen.name,
            lr=chosen.lr,
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            layer_decay=chosen.layer_decay,
            **more,
        )
        return made

    return TrainingModule(
        network,
        loss=make_loss(recipe, spec.num_classes, data.preprocessing, mixes_labels=data.mixes_labels),
        make_optimizer=make_optimizer,
        mix=data.mix,
        ema_decay=recipe.ema.decay,
        ema_warmup=recipe.ema.warmup,
        schedule=Schedule(recipe.schedule.warmup_epochs, recipe.schedule.min_lr),
        layout=layout,
        seed=recipe.seed,
        card=card,
        channels_last=compute.channels_last,
        compiled=compute.compile,
        held_out_shared=not data.streamed,
    )


def _trainer(
    recipe: Recipe,
    devices: Devices,
    layout: Layout,
    callbacks: list[Callback],
    log: Path,
    batches: int | None,
) -> Trainer:
    return Trainer(
        accelerator=devices.kind,
        devices=devices.per_node,
        num_nodes=devices.nodes,
        strategy="ddp" if devices.world > 1 else "auto",
        precision=PRECISIONS[recipe.compute.precision],  # type: ignore[arg-type]
        sync_batchnorm=recipe.compute.sync_bn,
        accumulate_grad_batches=layout.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm,
        limit_train_batches=batches * layout.accumulate if batches is not None else 1.0,
        max_epochs=recipe.epochs,
        callbacks=callbacks,
        plugins=[PlainCheckpointIO()],
        logger=make_loggers(log) if is_first_process() else False,
        # Everything else that would write into the user's folder or to the terminal.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


NOTHING_KEPT = "no epoch was finished, so there is no checkpoint of this run"


def _kept(targets: Targets) -> str:
    if not targets.last.is_file():
        return NOTHING_KEPT
    position = read_position(targets.last)
    within = f" and {position.steps} steps of the next" if position.steps else ""
    return f"{targets.last} holds the state after epoch {position.epoch}{within}"


def _require_same_data(position: Position, data: TrainingData, recipe: Recipe) -> None:
    """A run goes on with the images that it began with, wherever they lie now.

    Raises:
        RecipeError: there are others.
    """
    count = len(data.train)  # type: ignore[arg-type]
    if position.images is None or (position.images == count and position.class_names == data.class_names):
        return
    pairs = zip(position.class_names, data.class_names, strict=False)
    first = next((f"class {at} was {then}, is {now}" for at, (then, now) in enumerate(pairs) if then != now), None)
    raise RecipeError(
        f"the run began with {position.images} training images of {len(position.class_names)} classes; "
        f"there are {count} of {len(data.class_names)} now",
        details=[first] if first else (),
        hint=f"give the same images, or name the new run with --set name={recipe.name}_2",
    )
