"""What a run tells while it goes on: throughput, log files, and a picture at the end."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vexport.deps import needs
from vexport.train.data import Batch
from vexport.train.module import TrainingModule
from vexport.train.ranks import is_first_process
from vexport.workspace import mapped_os_errors

with needs("train"):
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

Progress = Callable[[int, int, Mapping[str, float]], None]
LOG_EVERY = 20
REFRESH_S = 0.5


def log_folder(workspace: Path, name: str, run: int) -> Path:
    """Where a run's log files go."""
    return workspace / f"{name}.log" / f"run-{run}"


def next_run(workspace: Path, name: str) -> int:
    """The first number that no run of this recipe has yet."""
    taken = [int(path.name[4:]) for path in (workspace / f"{name}.log").glob("run-*") if path.name[4:].isdigit()]
    return max(taken, default=0) + 1


def make_loggers(folder: Path) -> list[Logger]:
    """Lightning's CSV and TensorBoard loggers; each start of a run has a version of its own below `folder`."""
    csv_logger = CSVLogger(folder.parent, name=folder.name)
    board = TensorBoardLogger(folder.parent, name=folder.name, version=csv_logger.version)
    return [csv_logger, board]


class Watch(Callback):
    """Measures throughput and the share of time that is spent waiting for images, and logs.

    It stands before whatever writes checkpoints: what a checkpoint holds is in the log files already.
    """

    figures: Mapping[str, float]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._began, self._batches = time.perf_counter(), 0
        self._restart()

    def _restart(self) -> None:
        self._wait_s, self._busy_s, self._images = 0.0, 0.0, 0
        self._last = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        self._wait_s += now - self._last
        self._last = now

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        assert isinstance(pl_module, TrainingModule)
        now = time.perf_counter()
        self._busy_s += now - self._last
        self._last = now
        self._images += pl_module.layout.micro_batch * pl_module.layout.world
        self._batches += 1
        if pl_module.ends_step(batch_idx) and trainer.global_step % LOG_EVERY == 0:
            pl_module.look_at_losses()
            figures = {"loss": pl_module.recent_loss, "lr": lr_of(trainer), "slope": pl_module.slope}
            self._log(trainer, figures)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        ema, model = pl_module.scores["ema"], pl_module.scores["model"]
        figures = {
            "epoch": float(trainer.current_epoch + 1),
            "epoch_loss": pl_module.mean_loss,
            "slope": pl_module.slope,
            "top1": ema.top1,
            "top1_model": model.top1,
            "held_out_loss": ema.loss,
            "lr": lr_of(trainer),
            **self.speed(trainer),
        }
        self._log(trainer, {name: value for name, value in figures.items() if name != "eta_s"})
        self.figures = figures | {"loss": pl_module.mean_loss}

    def speed(self, trainer: Trainer) -> dict[str, float]:
        """Of this epoch; the time that is left is told by the pace since the start, with what validation takes."""
        spent = self._wait_s + self._busy_s
        left = float(trainer.num_training_batches) * (trainer.max_epochs or 0)
        left -= trainer.fit_loop.epoch_loop.total_batch_idx + 1
        pace = (time.perf_counter() - self._began) / max(1, self._batches)
        return {
            "images_per_s": self._images / spent if spent else 0.0,
            "data_wait": self._wait_s / spent if spent else 0.0,
            "eta_s": max(0.0, left) * pace,
        }

    @staticmethod
    def _log(trainer: Trainer, figures: Mapping[str, float]) -> None:
        for logger in trainer.loggers:
            with mapped_os_errors(Path(logger.log_dir or logger.save_dir or ".")):
                logger.log_metrics(dict(figures), step=trainer.global_step)
                logger.save()  # a killed process leaves what was logged


class Report(Callback):
    """Tells the caller how far training is.

    Args:
        progress: Called with epochs done, all epochs and the figures so far: at each epoch's end with all of them, once
            its checkpoint is written, and in between with `step`, `steps`, `images_per_s`, `data_wait` and `eta_s`;
            these while it validates too, where `step` stays the last one.
        watch: Has the figures.
    """

    def __init__(self, progress: Progress, watch: Watch) -> None:
        self._progress, self._watch, self._reported = progress, watch, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._progress(trainer.current_epoch, trainer.max_epochs or 0, {})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._report(trainer, batch_idx + 1)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._report(trainer, trainer.num_training_batches)  # nothing new, but whoever waits hears that it goes on

    def _report(self, trainer: Trainer, step: float) -> None:
        now = time.perf_counter()
        if now - self._reported > REFRESH_S:
            self._reported = now
            figures = {"step": step, "steps": float(trainer.num_training_batches)}
            self._progress(trainer.current_epoch, trainer.max_epochs or 0, figures | self._watch.speed(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._progress(trainer.current_epoch + 1, trainer.max_epochs or 0, self._watch.figures)


def lr_of(trainer: Trainer) -> float:
    """The learning rate; with layer-wise decay that of the last layers."""
    return float(max(group["lr"] for group in trainer.optimizers[0].param_groups))


def read_log(folder: Path) -> list[dict[str, float]]:
    """The figures of a run, step by step, from all its starts.

    What was logged after the checkpoint from which a later start went on is superseded by that start.
    """
    rows: dict[int, dict[str, float]] = {}
    versions = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.partition("_")[2]))
    for path in versions:
        with path.open(encoding="utf-8", newline="") as stream:
            read = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
        if read:
            first = int(read[0]["step"])
            rows = {step: row for step, row in rows.items() if step < first}
        for row in read:
            rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def draw_curves(folder: Path, title: str) -> Path | None:
    """A picture of loss, accuracy, learning rate and slope beside the log files.

    Returns:
        Its path; None where there is nothing to draw.
    """
    rows = read_log(folder)
    if not any("epoch" in row for row in rows) or not is_first_process():
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ends = [(row["step"], row["epoch"]) for row in rows if "epoch" in row]
    per_epoch = ends[-1][0] / ends[-1][1]
    panels = (
        (
            "loss",
            {"loss": "training, by step", "epoch_loss": "training, mean of the epoch", "held_out_loss": "held out"},
        ),
        ("held-out accuracy, %", {"top1": "moving average", "top1_model": "weights"}),
        ("learning rate", {"lr": ""}),
        ("slope of A'", {"slope": ""}),
    )
    for axes, (label, series) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, legend in series.items():
            points = [(row["step"] / per_epoch, row[name]) for row in rows if name in row]
            thin = name == "loss"
            axes.plot(*zip(*points, strict=True), label=legend, lw=0.7 if thin else 1.6, alpha=0.6 if thin else 1.0)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if any(series.values()):
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    path = folder / "curves.png"
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]
    return path
