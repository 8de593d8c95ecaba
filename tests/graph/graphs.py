"""Graphs for counting: written by hand, with the weights' shapes and no contents."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT


class Draft:
    """A graph in the making; every node is named after its output."""

    def __init__(self, shape: Sequence[int | str], kind: int = FLOAT) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.kind = kind
        self.input = helper.make_tensor_value_info("x", kind, shape)

    def weight(self, name: str, *dims: int, kind: int | None = None) -> str:
        self.weights.append(TensorProto(name=name, data_type=self.kind if kind is None else kind, dims=dims))
        return name

    def add(self, operator: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def conv(
        self, source: str, name: str, taken: int, given: int, side: int = 1, stride: int = 1, group: int = 1
    ) -> str:
        """With bias, and padded by half its kernel where the stride does not fill that."""
        weight = self.weight(f"{name}.weight", given, taken // group, side, side)
        bias = self.weight(f"{name}.bias", given)
        pad = 0 if side == stride else side // 2
        return self.add("Conv", [source, weight, bias], name, group=group, strides=[stride] * 2, pads=[pad] * 4)

    def scale(self, name: str, *dims: int) -> list[str]:
        """Scale and zero point of 8-bit numbers."""
        return [
            self.weight(f"{name}.scale", *dims, kind=FLOAT),
            self.weight(f"{name}.zero", *dims, kind=TensorProto.INT8),
        ]

    def quantized(self, source: str, name: str) -> str:
        """Through QuantizeLinear and DequantizeLinear."""
        pair = self.scale(name)
        self.add("QuantizeLinear", [source, *pair], f"{name}.q")
        return self.add("DequantizeLinear", [f"{name}.q", *pair], f"{name}.dq")

    def model(self, *outputs: str) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info(name, self.kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "draft", [self.input], given, self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)], ir_version=9
        )


def vanillanet(dims: Sequence[int], strides: Sequence[int], classes: int = 1000, *, side: int = 7) -> onnx.ModelProto:
    """The deployed form, as the paper describes it."""
    draft = Draft(["n", 3, 224, 224])

    def series(source: str, name: str, width: int) -> str:
        return draft.conv(source, name, width, width, side, group=width)

    last = draft.add("Relu", [draft.conv("x", "stem.0", 3, dims[0], 4, 4)], "stem.relu")
    last = series(last, "stem.1", dims[0])
    for index, (taken, given, stride) in enumerate(zip(dims, dims[1:], strides, strict=False)):
        last = draft.conv(last, f"stages.{index}.conv", taken, given)
        last = draft.add("Relu", [last], f"stages.{index}.relu")
        if stride == 2:
            last = draft.add("MaxPool", [last], f"stages.{index}.pool", kernel_shape=[2, 2], strides=[2, 2])
        last = series(last, f"stages.{index}.act", given)
    last = draft.add("GlobalAveragePool", [last], "pool")
    last = draft.conv(last, "cls", dims[-1], classes)
    return draft.model(draft.add("Flatten", [last], "y"))


def resnet50(classes: int = 1000) -> onnx.ModelProto:
    """With BatchNorm folded, as torchvision and timm have it."""
    draft = Draft(["n", 3, 224, 224])
    last = draft.add("Relu", [draft.conv("x", "conv1", 3, 64, 7, 2)], "relu1")
    last = draft.add("MaxPool", [last], "pool1", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            short = last
            if not block:
                short = draft.add(
                    "Conv",
                    [last, draft.weight(f"{name}.short.weight", 4 * inner, width, 1, 1)],
                    f"{name}.short",
                    strides=[stride] * 2,
                )
            part = draft.add("Relu", [draft.conv(last, f"{name}.conv1", width, inner)], f"{name}.relu1")
            part = draft.add("Relu", [draft.conv(part, f"{name}.conv2", inner, inner, 3, stride)], f"{name}.relu2")
            part = draft.conv(part, f"{name}.conv3", inner, 4 * inner)
            last = draft.add("Relu", [draft.add("Add", [part, short], f"{name}.add")], f"{name}.relu")
            width = 4 * inner
    last = draft.add("Flatten", [draft.add("GlobalAveragePool", [last], "pool")], "flat")
    weight = draft.weight("fc.weight", classes, width)
    return draft.model(draft.add("Gemm", [last, weight, draft.weight("fc.bias", classes)], "y", transB=1))


def two_layers(kind: int = TensorProto.FLOAT, batch: int | str = "n") -> onnx.ModelProto:
    """conv a - relu - pool - conv b - flatten."""
    draft = Draft([batch, 3, 8, 8], kind)
    relu = draft.add("Relu", [draft.conv("x", "a", 3, 16, 3)], "a.relu")
    pool = draft.add("MaxPool", [relu], "pool", kernel_shape=[2, 2], strides=[2, 2])
    return draft.model(draft.add("Flatten", [draft.conv(pool, "b", 16, 4)], "y"))


def qdq(*, shared: bool = False) -> onnx.ModelProto:
    """x -> Q/DQ -> conv a -> Relu -> Q/DQ -> conv b, weights in INT8 behind DequantizeLinear."""
    draft = Draft(["n", 3, 8, 8])

    def conv(source: str, name: str, taken: int, given: int) -> str:
        weight = draft.weight(f"{name}.weight", given, taken, 1, 1, kind=TensorProto.INT8)
        draft.add("DequantizeLinear", [weight, *draft.scale(f"{name}.w", given)], f"{name}.w.dq", axis=0)
        return draft.add("Conv", [source, f"{name}.w.dq", draft.weight(f"{name}.bias", given)], name)

    relu = draft.add("Relu", [conv(draft.quantized("x", "x"), "a", 3, 16)], "a.relu")
    b = conv(draft.quantized(relu, "m"), "b", 16, 4)
    return draft.model(b, relu) if shared else draft.model(b)
