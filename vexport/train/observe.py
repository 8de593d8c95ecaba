"""Before the first step of quantisation-aware training: the ranges of what each convolution takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vexport.deps import needs
from vexport.recipe import Recipe
from vexport.run.calibrate import StreamedHistogram
from vexport.train.data import TrainingData
from vexport.train.loading import Loading
from vexport.train.module import TrainingModule
from vexport.train.qat import choose_ranges, rounded_layers
from vexport.train.sampling import Layout

with needs("train"):
    from lightning.pytorch import Callback, Trainer


class MeasureRanges(Callback):
    """Measures ranges that are not known; a run that is gone on with has them.

    Every process measures the same images, the first ones of the first epoch: neither the number of devices nor that of
    workers changes what is found.

    Args:
        recipe: With a section `qat`.
        data: Of the run.
        tell: Told what is going on.
    """

    def __init__(self, recipe: Recipe, data: TrainingData, tell: Callable[[str], None] = lambda _: None) -> None:
        assert recipe.qat is not None
        layout = Layout.of(recipe.batch_size, recipe.compute.micro_batch, 1)
        self._loading = Loading(data, layout, recipe.seed)
        self._images, self._method, self._tell = recipe.qat.images, recipe.qat.method, tell

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        network = pl_module.network
        layers = rounded_layers(network)
        if all(math.isfinite(layer.input_range) for layer in layers.values()):
            return
        if trainer.is_global_zero:
            self._tell(f"measuring what {len(layers)} convolutions take, on {self._images} training images")
        network.eval()
        for layer in layers.values():
            layer.histogram = StreamedHistogram()
        left = self._images
        with torch.no_grad():
            for images, _, _ in self._loading.train_dataloader():
                network(images[:left].to(pl_module.device))
                left -= len(images)
                if left <= 0:
                    break
        choose_ranges(network, self._method)
        for name, layer in rounded_layers(pl_module.ema.module).items():
            layer.input_range.copy_(layers[name].input_range)
