"""The loss of a recipe: per class or over classes, with a teacher beside it where one is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy  # type: ignore[attr-defined]
from torch import Tensor, nn

from vexport.artifacts import Preprocessing
from vexport.errors import RecipeError, VexportError
from vexport.model.weights_file import PYTORCH_SUFFIXES
from vexport.recipe import Recipe

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# How a teacher's file ends; timm's names may have a dot too, as resnet50.a1_in1k.
SUFFIXES = (*PYTORCH_SUFFIXES, ".safetensors")
# What timm fetches by an address in place of a name.
ADDRESSES = ("hf-hub:", "local-dir:")


class Plain(nn.Module):
    """A loss that does not look at the images.

    Args:
        loss: Of logits and targets.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        found: Tensor = self.loss(logits, targets)
        return found


class Distilled(nn.Module):
    """A loss with a teacher's soft targets mixed in (Hinton et al., arXiv 1503.02531, section 2).

    (1 - weight) * loss + weight * T^2 * KL(teacher / T || student / T): the square keeps the gradient's size as T
    grows.

    Args:
        loss: Of logits and targets.
        teacher: Images to logits; it stays as it is.
        weight: Of the soft targets.
        temperature: T.
    """

    def __init__(self, loss: nn.Module, teacher: nn.Module, weight: float, temperature: float) -> None:
        super().__init__()
        self.loss, self.teacher = loss, teacher.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def forward(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.teacher(images).float() / self.temperature
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        soft = F.kl_div(student, F.log_softmax(taught, dim=1), reduction="batchmean", log_target=True)
        hard: Tensor = self.loss(logits, targets)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft


class Renormalised(nn.Module):
    """A teacher that was trained with another mean and deviation than the images have been normalised with.

    Args:
        teacher: Images to logits.
        given: Mean and deviation per channel that the images have been normalised with.
        own: Those that the teacher knows.
    """

    def __init__(
        self, teacher: nn.Module, given: tuple[Sequence[float], Sequence[float]], own: tuple[Sequence[float], ...]
    ) -> None:
        super().__init__()
        self.teacher = teacher
        (mean, std), (own_mean, own_std) = (tuple(torch.tensor(values) for values in pair) for pair in (given, own))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (std / own_std).view(1, -1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.teacher(images * self.scale + self.shift)
        return logits


def _renormalised(teacher: nn.Module, own: tuple[Sequence[float], ...] | None, images: Preprocessing) -> nn.Module:
    given = (images.mean, images.std)
    if own is None or len(own[0]) != len(images.mean) or tuple(map(tuple, own)) == tuple(map(tuple, given)):
        return teacher
    return Renormalised(teacher, given, own)


def make_loss(recipe: Recipe, classes: int, images: Preprocessing, *, mixes_labels: bool) -> nn.Module:
    """The loss that a recipe describes.

    Args:
        recipe: What to train.
        classes: Of the data.
        images: How its images are prepared; a teacher that knows others is given its own normalisation.
        mixes_labels: Whether the targets are soft, and smoothed already.

    Raises:
        RecipeError: the teacher is unknown, cannot be fetched, or has other classes.
    """
    smoothing = 0.0 if mixes_labels else recipe.loss.label_smoothing
    loss: nn.Module = (
        # Beside a teacher it is summed over the classes: their mean would be hundreds of times smaller than what the
        # teacher adds, and `weight` would say nothing.
        BinaryCrossEntropy(smoothing=smoothing, sum_classes=recipe.distill is not None)
        if recipe.loss.name == "bce"
        else nn.CrossEntropyLoss(label_smoothing=smoothing)
    )
    if recipe.distill is None:
        return Plain(loss)
    teacher = _renormalised(*_teacher(recipe, classes), images)
    input_size = images.input_size
    with torch.no_grad():
        try:
            answer = tuple(teacher.eval()(torch.zeros(2, *input_size)).shape)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise RecipeError(
                f"distill.teacher {recipe.distill.teacher} does not take images of {'x'.join(map(str, input_size))}",
                details=[str(error).splitlines()[0][:200]] if str(error) else (),
                hint="choose a teacher of this image size",
            ) from error
    if answer != (2, classes):
        raise RecipeError(
            f"distill.teacher {recipe.distill.teacher} tells {answer[-1]} classes apart, the data have {classes}",
            hint="a teacher answers with the same classes: train one on these data, or fine-tune it",
        )
    return Distilled(loss, teacher, recipe.distill.weight, recipe.distill.temperature)


def _teacher(recipe: Recipe, classes: int) -> tuple[nn.Module, tuple[Sequence[float], ...] | None]:
    """A VanillaNet checkpoint or a timm model, pretrained or with the weights of a file; its mean and deviation."""
    assert recipe.distill is not None
    name, file = recipe.distill.teacher, recipe.distill.checkpoint
    fetched = name.startswith(ADDRESSES)
    if not fetched and (Path(name).suffix in SUFFIXES or len(Path(name).parts) > 1 or Path(name).is_file()):
        from vexport.model.checkpoint import load_network

        try:
            network, loaded = load_network(Path(name))
        except VexportError as error:
            raise RecipeError(
                f"distill.teacher {name} cannot be loaded", details=[str(error), *error.details], hint=error.hint
            ) from error
        return network, (loaded.preprocessing.mean, loaded.preprocessing.std)
    import timm

    if not fetched and not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0][:6]}*")[:4]
        raise RecipeError(
            f"distill.teacher {name} is neither a file nor a model of timm's",
            hint=f"as in {', '.join(near)}" if near else "timm.list_models() names them",
        )
    try:
        made: nn.Module = (
            timm.create_model(name, checkpoint_path=file, num_classes=classes)
            if file
            else timm.create_model(name, pretrained=True)
        )
    except Exception as error:  # the hub, the disk and the weights fail in a dozen ways of their own
        lines = [line.strip()[:200] for line in str(error).splitlines()[:4]]
        raise RecipeError(
            f"the weights of distill.teacher {name} cannot be had" + (f" from {file}" if file else ""),
            details=[f"{type(error).__name__}: {lines[0]}", *lines[1:]] if lines else [type(error).__name__],
            hint=f"a file of this model's weights, with {classes} classes"
            if file
            else "a connection to the Hugging Face hub, or --set distill.checkpoint=FILE",
        ) from error
    known = getattr(made, "pretrained_cfg", None) or {}
    return made, (known["mean"], known["std"]) if known.get("mean") and known.get("std") else None
