"""How far a training is, in words and as a share."""

from __future__ import annotations

from collections.abc import Mapping


def duration(seconds: float) -> str:
    """A time in a unit that reads well."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def describe_epoch(epoch: int, epochs: int, metrics: Mapping[str, float]) -> str:
    """A line on how training goes: at an epoch's end, or within it.

    Args:
        epoch: Epochs that are done.
        epochs: In all.
        metrics: As `train_recipe` tells them.
    """
    parts = []
    if "top1" in metrics:
        parts.append(
            f"loss {metrics['loss']:.3f}, slope {metrics['slope']:.2f}, held-out {metrics['top1']:.1f} % "
            f"(weights {metrics['top1_model']:.1f} %)"
        )
    elif "step" in metrics:
        parts.append(f"batch {metrics['step']:.0f}/{metrics['steps']:.0f}")
    if "images_per_s" in metrics:
        parts.append(f"{metrics['images_per_s']:.0f} images/s, {metrics['data_wait']:.0%} waiting for data")
    if metrics.get("eta_s"):
        parts.append(f"{duration(metrics['eta_s'])} left")
    return f"epoch {epoch}/{epochs}" + (": " + ", ".join(parts) if parts else "")


def epoch_share(epoch: int, epochs: int, metrics: Mapping[str, float]) -> float:
    """The share of a training that is done, 0 to 1."""
    within = metrics["step"] / metrics["steps"] if "step" in metrics and metrics.get("steps") else 0.0
    return min(1.0, (epoch + within) / max(1, epochs))
