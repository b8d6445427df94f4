"""Random networks of everything that has an integer kernel, and of what stands between."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


class Network:
    """Writes a model node by node; shapes are followed by hand.

    Weights are initializers or Constant nodes, nodes have names or not, as the seed has it.
    """

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.data: list[onnx.TensorProto] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.number = 0

    def name(self) -> str:
        """A new name; some are what a quantizer would like to call its own values."""
        self.number += 1
        suffixes = ["", "", "", "_quantized", "_dequantized", "_scale", "_zero_point", "_float"]
        last = f"v{max(self.number - 2, 0)}"
        name = last + str(self.rng.choice(suffixes))
        return f"v{self.number}" if name in self.shapes else name

    def input(self, *shape: int) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape
        return name

    def constant(self, array: Array) -> str:
        name = self.name()
        self.shapes[name] = array.shape
        tensor = numpy_helper.from_array(array, name)
        if self.rng.random() < 0.3:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.data.append(tensor)
        return name

    def floats(self, *shape: int, size: float = 1.0) -> str:
        return self.constant((size * self.rng.standard_normal(shape)).astype(np.float32))

    def op(self, op_type: str, *inputs: str, shape: tuple[int, ...], **attributes: object) -> str:
        out = self.name()
        self.shapes[out] = shape
        named = f"n{self.number}" if self.rng.random() < 0.5 else ""
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=named, **attributes))
        return out

    def value(self, array: list[int]) -> str:
        return self.constant(np.array(array, np.int64))

    def model(self) -> onnx.ModelProto:
        kinds = [
            [helper.make_tensor_value_info(name, 1, self.shapes[name]) for name in names]
            for names in (self.inputs, self.outputs)
        ]
        graph = helper.make_graph(self.nodes, "network", *kinds, self.data)
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8 if self.opset < 21 else 10)
        onnx.checker.check_model(model, full_check=True)
        return model

    # Layers.

    def conv(self, x: str, channels: int, group: int = 1, kernel: int = 3) -> str:
        batch, before, *size = self.shapes[x]
        columns = before // group * kernel * kernel
        inputs = [x, self.floats(channels, before // group, kernel, kernel, size=1.5 / columns**0.5)]
        if self.rng.random() < 0.7:
            inputs.append(self.floats(channels, size=0.3))
        pads = [kernel // 2] * 4
        y = self.op("Conv", *inputs, shape=(batch, channels, *size), group=group, pads=pads)
        return self.saturated(y)

    def saturated(self, x: str) -> str:
        kind = self.rng.integers(4)
        if kind == 0:
            return self.op("Relu", x, shape=self.shapes[x])
        if kind == 1:
            bounds = [self.constant(np.float32(bound)) for bound in self.rng.choice([(0, 6), (-1, 1)])]
            return self.op("Clip", x, *bounds, shape=self.shapes[x])
        return x

    def scaled(self, x: str) -> str:
        factor = self.constant(np.float32(self.rng.choice([0.3, 3.0, 6.0, 8.0])))
        op = str(self.rng.choice(["Mul", "Div"]))
        operands = (factor, x) if op == "Mul" and self.rng.random() < 0.5 else (x, factor)
        return self.op(op, *operands, shape=self.shapes[x])

    def gemm(self, x: str, columns: int) -> str:
        batch, before = self.shapes[x]
        swapped = int(self.rng.integers(2))
        weight = self.floats(*((columns, before) if swapped else (before, columns)), size=before**-0.5)
        bias = [self.floats(columns, size=0.3)] if self.rng.random() < 0.7 else []
        return self.op("Gemm", x, weight, *bias, shape=(batch, columns), transB=swapped)

    def matmul(self, x: str, columns: int) -> str:
        *rows, before = self.shapes[x]
        y = self.op("MatMul", x, self.floats(before, columns, size=before**-0.5), shape=(*rows, columns))
        if self.rng.random() < 0.7:
            bias = self.floats(columns, size=0.3)
            y = self.op("Add", *((y, bias) if self.rng.random() < 0.5 else (bias, y)), shape=self.shapes[y])
        return y


def images(seed: int, opset: int) -> Network:
    """A convolutional network of a dozen steps, each on any value so far, and a head."""
    net = Network(seed, opset)
    found = [net.input(1, 8, 8, 8)]
    for _ in range(12):
        x = str(net.rng.choice(found[-3:]))
        found.append(_image_step(net, x, found))
    net.outputs = list(dict.fromkeys([found[-1], *net.rng.choice(found[1:], 2)]))
    flat = net.op("Flatten", found[-1], shape=(1, int(np.prod(net.shapes[found[-1]][1:]))))
    net.outputs.append(net.gemm(net.op("Tanh", flat, shape=net.shapes[flat]), 10))
    return net


IMAGE_STEPS = ["conv"] * 3 + ["deep", "point", "add", "mul", "concat", "pool", "mean", "turn", "cut", "scale"]
SENTENCE_STEPS = ["product"] * 3 + ["add", "mul", "attention", "join", "scale"]
CURVES = ["Sigmoid", "Tanh"]


def _image_step(net: Network, x: str, found: list[str]) -> str:  # noqa: PLR0911 - one for each operator
    shape = net.shapes[x]
    batch, channels, height, width = shape
    same = [y for y in found if net.shapes[y] == shape]
    kind = str(net.rng.choice(IMAGE_STEPS + CURVES))
    if kind == "conv":
        return net.conv(x, 8)
    if kind == "deep":
        return net.conv(x, channels, group=channels)
    if kind == "point":
        return net.conv(x, 8, kernel=1)
    if kind == "add":
        y = net.op("Add", x, str(net.rng.choice(same)), shape=shape)
        return net.op("Relu", y, shape=shape) if net.rng.random() < 0.5 else y
    if kind == "mul":
        return net.op("Mul", x, net.floats(1, channels, 1, 1), shape=shape)
    if kind == "scale":
        return net.scaled(x)
    if kind == "concat":
        parts = [x, str(net.rng.choice(same)), net.floats(batch, 2, height, width)]
        return net.op("Concat", *parts, shape=(batch, 2 * channels + 2, height, width), axis=1)
    if kind == "pool":
        return net.op("MaxPool", x, shape=shape, kernel_shape=[3, 3], pads=[1] * 4)
    if kind == "mean":
        return net.op("AveragePool", x, shape=shape, kernel_shape=[3, 3], pads=[1] * 4)
    if kind == "turn":
        return net.op("Transpose", x, shape=(batch, channels, width, height), perm=[0, 1, 3, 2])
    if kind == "cut":
        bounds = [net.value([0]), net.value([4]), net.value([1])]
        return net.op("Slice", x, *bounds, shape=(batch, 4, height, width))
    return net.op(kind, x, shape=shape)


def sentences(seed: int, opset: int) -> Network:
    """A network of matrix products over a sequence, and a head."""
    net = Network(seed, opset)
    found = [net.input(1, 6, 16), net.input(1, 6, 16)]
    for _ in range(9):
        x = str(net.rng.choice(found[-3:]))
        found.append(_sentence_step(net, x, found))
    net.outputs = list(dict.fromkeys([found[-1], *net.rng.choice(found[2:], 2)]))
    flat = net.op("Reshape", found[-1], net.value([6, 16]), shape=(6, 16))
    net.outputs.append(net.gemm(flat, 5))
    return net


def _sentence_step(net: Network, x: str, found: list[str]) -> str:
    shape = net.shapes[x]
    kind = str(net.rng.choice(SENTENCE_STEPS + CURVES))
    if kind == "product":
        return net.saturated(net.matmul(x, 16))
    if kind in {"add", "mul"}:
        return net.op("Add" if kind == "add" else "Mul", x, str(net.rng.choice(found)), shape=shape)
    if kind == "scale":
        return net.scaled(x)
    if kind == "attention":
        y = str(net.rng.choice(found))
        turned = net.op("Transpose", y, shape=(1, 16, 6), perm=[0, 2, 1])
        scores = net.op("MatMul", x, turned, shape=(1, 6, 6))
        return net.op("MatMul", net.op("Softmax", scores, shape=(1, 6, 6), axis=-1), y, shape=shape)
    if kind == "join":
        y = net.op("Concat", x, str(net.rng.choice(found)), shape=(1, 6, 32), axis=2)
        return net.matmul(y, 16)
    return net.op(kind, x, shape=shape)
