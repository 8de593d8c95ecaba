"""AlexNet, for the ablations: the shallow network beside VanillaNet and ResNet-50."""

from __future__ import annotations

from torch import Tensor, nn

from vexport.errors import InputError
from vexport.model.variants import scale_width

WIDTHS = (64, 192, 384, 256, 256)
HIDDEN = 4096


class AlexNet(nn.Module):
    """AlexNet as torchvision has it (Krizhevsky, arXiv 1404.5997), of any width and for any image size.

    Its tensors have torchvision's names and, at width 1 and 224x224, shapes. There is no adaptive pool: the first
    linear layer takes the feature map as it is, 6x6 out of 224x224.

    Args:
        image_size: Height and width of the input.
        width: Multiplier of the channels.
        num_classes: Classes.
        in_chans: Channels of the input.
        drop_rate: Dropout before both hidden layers.
        stem_stride: Stride of the 11x11 convolution.
        norm: Whether a BatchNorm stands behind each convolution, which the original has not.

    Shape:
        (N, in_chans, image_size, image_size) to logits (N, num_classes).
    """

    def __init__(
        self,
        image_size: int = 224,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.5,
        stem_stride: int = 4,
        norm: bool = False,
    ) -> None:
        super().__init__()
        a, b, c, d, e = scale_width(WIDTHS, width)
        hidden = scale_width((HIDDEN,), width)[0]
        pool = nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *_layer(nn.Conv2d(in_chans, a, 11, stem_stride, 2), norm),
            pool,
            *_layer(nn.Conv2d(a, b, 5, padding=2), norm),
            pool,
            *_layer(nn.Conv2d(b, c, 3, padding=1), norm),
            *_layer(nn.Conv2d(c, d, 3, padding=1), norm),
            *_layer(nn.Conv2d(d, e, 3, padding=1), norm),
            pool,
        )
        side = _alexnet_side(image_size, stem_stride)
        self.classifier = nn.Sequential(
            *(nn.Dropout(drop_rate), nn.Linear(e * side * side, hidden), nn.ReLU()),
            *(nn.Dropout(drop_rate), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


def _layer(conv: nn.Conv2d, norm: bool) -> list[nn.Module]:
    return [conv, *([nn.BatchNorm2d(conv.out_channels)] if norm else []), nn.ReLU()]


def _alexnet_side(image_size: int, stem_stride: int) -> int:
    """Height and width of AlexNet's last feature map.

    Raises:
        InputError: nothing is left of it.
    """
    side = (image_size + 4 - 11) // stem_stride + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    if side < 1:
        raise InputError(
            f"an image of {image_size}x{image_size} is too small for alexnet",
            hint="take larger images, or a smaller network.stem_stride",
        )
    return side
