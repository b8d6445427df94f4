"""How blocks of integers are written, and what ONNX Runtime makes of each form.

Found with ONNX Runtime 1.32 on an x64 CPU with VNNI by timing small graphs of each case, one thread, against
the product on floats; weights of 384 x 384 to 2048 x 2048, inputs of 1, 16 and 128 rows:

- MatMulNBits with ``accuracy_level`` 4 multiplies integers: its inputs become int8, block by block, which
  leaves 40 dB: far less noise than 4-bit weights make, and more than 8-bit ones do. With weights of 8 bits in
  blocks of 32 a sentence encoder has 32.0 dB so, and 37.5 dB with products on floats; a character-level GPT
  47.9 and 54.2 dB. With one row it is 1.2 to 7 times as fast as
  floats, since it reads less; with many rows it is as fast, or slower by up to half.
- With another ``accuracy_level`` it is slower than floats, with 8 bits by a factor of 10 to 30.
- Zero points cost no time. Larger blocks are a little faster.
- A MatMul behind DequantizeLinear in blocks becomes the same kernel; but in front of Conv, Gather and LSTM
  DequantizeLinear runs every time, for an embedding a thousand times as long as the lookup.
- Cast, Sub, Mul, Reshape and Transpose of constants are folded when the model is loaded. What decodes a
  weight with these computes on floats, as fast as before; only the file is small.
- GatherBlockQuantized decodes the rows that are looked up; packed as uint8 it takes 3 times as long as
  Gather, some microseconds, as uint4 20 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graph as g
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.storage.spill import Spill
from graphopt.storage.weights import MappedTensor
from graphopt_passes.exact.eliminate_dead_code import remove_dead
from graphopt_passes.weights.blocks import Blocked, blocked, middle
from graphopt_passes.weights.constants import Front, replace
from graphopt_passes.weights.places import Place, Reader

CONTRIB = "com.microsoft"
INTEGERS = 4  # ``accuracy_level``: inputs become int8
FIRST_WITH_NIBBLES = 21  # the opset with types of 4 bits, and DequantizeLinear in blocks
IR_WITH_NIBBLES = 10


@dataclass(frozen=True)
class Style:
    """What a target makes of blocks.

    Attributes:
        kernels: whether it has some of its own; if not, DequantizeLinear in symmetric blocks says it in ONNX.
        ways: of reading a weight that it may have, see :class:`graphopt_passes.weights.places.Reader`.
        rounds: whether kernels of products round their inputs to 8 bits.
    """

    kernels: bool
    ways: frozenset[str]
    rounds: bool = False


_ALL = frozenset(["product", "lookup", "stored"])
STYLES = {
    "cpu": Style(True, _ALL, rounds=True),
    "cuda": Style(True, _ALL),
    "tensorrt": Style(False, frozenset(["product"])),
}
"""Target → its style."""


@dataclass(frozen=True)
class Packed:
    """A weight as its file has it.

    Attributes:
        integers: uint8 [channels, blocks, bytes of a block], of two numbers in a byte the first in the lower
            half.
        scales: float32 [channels, blocks].
        zeros: uint8 [channels, bytes of the zero points], packed likewise; ``None`` if all are the middle.
        bits, block: of the grid.
        columns: of the weight; the last block may be longer.
        method: how it was rounded.
        shift: what is added to the bias of the layer that multiplies with it, [channels].
    """

    integers: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: ir.TensorProtocol | None
    bits: int
    block: int
    columns: int
    method: str
    shift: np.ndarray[Any, Any] | None = None

    @classmethod
    def of(cls, weight: Blocked, method: str, spill: Spill) -> Packed:
        """Pack a weight; large tensors go to the file of new weights."""
        grid = weight.grid
        integers = pack(blocked(weight.integers, grid.block), grid.bits)
        zeros = None if grid.symmetric else spill.keep(ir.Tensor(pack(grid.zeros, grid.bits)))
        kept = spill.keep(ir.Tensor(integers)), spill.keep(ir.Tensor(grid.scales))
        return cls(*kept, zeros, grid.bits, grid.block, weight.integers.shape[1], method)

    @property
    def channels(self) -> int:
        """Rows of the weight."""
        return int(self.integers.shape.numpy()[0])

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return int(self.integers.shape.numpy()[1])

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return self.integers.nbytes + self.scales.nbytes + (self.zeros.nbytes if self.zeros else 0)


def pack(numbers: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Numbers of 8 bits as they are, or those of 4 bits two in a byte along the last axis."""
    if bits == 8:
        return np.ascontiguousarray(numbers)
    even = np.pad(numbers, [*[(0, 0)] * (numbers.ndim - 1), (0, numbers.shape[-1] % 2)])
    return np.asarray(even[..., 0::2] | (even[..., 1::2] << 4), np.uint8)


def unpack(packed: np.ndarray[Any, Any], bits: int, count: int) -> np.ndarray[Any, Any]:
    """The inverse of :func:`pack`, for ``count`` numbers along the last axis."""
    if bits == 8:
        return packed[..., :count]
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(*packed.shape[:-1], -1)[..., :count]


@dataclass(frozen=True)
class Writer:
    """Writes weights into a model.

    Attributes:
        model, run: what is changed, and its record.
    """

    model: Model
    run: Run

    # As it is stored: kernels that never make it float.

    def kernels(self, place: Place, packed: Packed) -> None:
        """Let each reader compute with the blocks; all of them share the same tensors."""
        shared = any(one.way == "lookup" for one in place.readers)
        inputs = self._constants(place, packed, flat=shared)
        for reader in place.readers:
            if reader.way == "lookup":
                self._lookup(reader, packed, inputs)
            else:
                self._product(reader, packed, inputs, flat=shared)
        self.model.ir.graph.opset_imports.setdefault(CONTRIB, 1)

    def _constants(self, place: Place, packed: Packed, flat: bool) -> list[ir.Value]:
        front, name = Front.of(place.weight, self.model, self.run), place.name
        integers = packed.integers
        if flat:
            bytes_ = integers.nbytes // packed.channels
            integers = _viewed(integers, ir.DataType.UINT8, (packed.channels, bytes_))
        zeros = packed.zeros
        if zeros is None and flat:
            middles = np.full((packed.channels, packed.blocks), middle(packed.bits), np.uint8)
            zeros = ir.Tensor(pack(middles, packed.bits))
        found = [front.constant(integers, f"{name}_q{packed.bits}")]
        found.append(front.constant(packed.scales, f"{name}_scales"))
        return found + ([front.constant(zeros, f"{name}_zero_points")] if zeros is not None else [])

    def _product(self, reader: Reader, packed: Packed, inputs: list[ir.Value], flat: bool) -> None:
        node = reader.node
        data, *grid = inputs
        if flat:
            dims = np.array([packed.channels, packed.blocks, -1], np.int64)
            shape = self.run.new_constant(self.model, node, dims, f"{data.name}_shape")
            data = self._insert(node, "", "Reshape", [data, shape], f"{data.name}_blocks")
        given: list[ir.Value | None] = [node.inputs[0], data, *grid]
        bias, addend = _bias(node, packed.channels)
        if bias is not None:
            given += [None] * (5 - len(given)) + [bias]
        made = self._insert(
            node,
            CONTRIB,
            "MatMulNBits",
            given,
            f"{g.output_name(node)}_product",
            K=packed.columns,
            N=packed.channels,
            bits=packed.bits,
            block_size=packed.block,
            accuracy_level=INTEGERS,
        )
        if addend is not None:
            made = self._insert(node, "", "Add", [made, addend], f"{g.output_name(node)}_sum")
        self._become(node, made)

    def _lookup(self, reader: Reader, packed: Packed, inputs: list[ir.Value]) -> None:
        node = reader.node
        data, *grid = inputs
        made = self._insert(
            node,
            CONTRIB,
            "GatherBlockQuantized",
            [data, node.inputs[1], *grid],
            f"{g.output_name(node)}_rows",
            bits=packed.bits,
            block_size=packed.block,
            gather_axis=0,
            quantize_axis=1,
        )
        self._become(node, made)

    def _insert(
        self,
        at: ir.Node,
        domain: str,
        op_type: str,
        inputs: list[ir.Value | None] | list[ir.Value],
        name: str,
        **attributes: int,
    ) -> ir.Value:
        found = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op_type, list(inputs), found)
        node.outputs[0].name = self.run.names(self.model).fresh(name)
        assert at.graph is not None
        at.graph.insert_before(at, [node])
        return node.outputs[0]

    def _become(self, node: ir.Node, made: ir.Value) -> None:
        g.inherit(node.outputs[0], made)
        remove_dead(node)

    # Decoded when the model is loaded: floats as before.

    def decoded(self, place: Place, packed: Packed) -> None:
        """Let constants that are folded at load make the weight: (q − z)·s, in its own shape."""
        front, name = Front.of(place.weight, self.model, self.run), place.name
        dims = packed.channels, packed.blocks, packed.block
        type_ = ir.DataType.UINT4 if packed.bits == 4 else ir.DataType.UINT8
        integers = front.constant(_tensor(packed.integers, type_, dims), f"{name}_q{packed.bits}")
        real = front.node("Cast", integers, to=int(ir.DataType.FLOAT))
        if packed.zeros is None:
            offset = front.constant(np.array(middle(packed.bits), np.float32), f"{name}_zero_point")
        else:
            zeros = front.constant(_tensor(packed.zeros, type_, (*dims[:2], 1)), f"{name}_zero_points")
            offset = front.node("Cast", zeros, to=int(ir.DataType.FLOAT))
        scales = _viewed(packed.scales, ir.DataType.FLOAT, (*dims[:2], 1))
        scale = front.constant(scales, f"{name}_scales")
        real = front.node("Mul", front.node("Sub", real, offset), scale)
        replace(place.weight, self._shaped(front, place, packed, real), self.model, self.run)
        if packed.bits == 4:
            self.model.ir.ir_version = max(self.model.ir.ir_version, IR_WITH_NIBBLES)

    def _shaped(self, front: Front, place: Place, packed: Packed, real: ir.Value) -> ir.Value:
        """[channels, blocks, block] in the weight's shape; what fills up the last block goes."""

        def numbers(values: list[int], what: str) -> ir.Value:
            return front.constant(np.array(values, np.int64), f"{place.name}_{what}")

        if packed.blocks * packed.block > packed.columns:
            real = front.node("Reshape", real, numbers([packed.channels, -1], "rows"))
            bounds = numbers([0], "start"), numbers([packed.columns], "end"), numbers([1], "axis")
            real = front.node("Slice", real, *bounds)
        if place.turned:
            real = front.node("Reshape", real, numbers([packed.channels, packed.columns], "turned"))
            return front.node("Transpose", real)
        return front.node("Reshape", real, numbers(list(place.weight.tensor.shape.numpy()), "shape"))

    # In ONNX's own words, for targets that know these.

    def dequantized(self, place: Place, packed: Packed) -> None:
        """DequantizeLinear in blocks along the columns (opset 21), the weight as it lay before."""
        front, name = Front.of(place.weight, self.model, self.run), place.name
        rows = unpack(packed.integers.numpy(), packed.bits, packed.block)
        grid = [rows.reshape(packed.channels, -1)[:, : packed.columns]]
        if packed.zeros is not None:
            grid.append(unpack(packed.zeros.numpy(), packed.bits, packed.blocks))
        data, *zeros = (_signed(part.T if place.turned else part, packed.bits) for part in grid)
        scales = packed.scales.numpy()
        scales = np.ascontiguousarray(scales.T if place.turned else scales)
        inputs = [front.constant(data, f"{name}_q{packed.bits}"), front.constant(scales, f"{name}_scales")]
        inputs += [front.constant(zero, f"{name}_zero_points") for zero in zeros]
        axis = 0 if place.turned else 1
        made = front.node("DequantizeLinear", *inputs, axis=axis, block_size=packed.block)
        replace(place.weight, made, self.model, self.run)
        self.model.ir.ir_version = max(self.model.ir.ir_version, IR_WITH_NIBBLES)


def _signed(numbers: np.ndarray[Any, Any], bits: int) -> ir.TensorProtocol:
    """Unsigned numbers as int4 or int8: less by the middle of their levels."""
    if bits == 8:
        return ir.Tensor(np.ascontiguousarray(numbers ^ np.uint8(middle(8))).view(np.int8))
    packed = pack(np.ascontiguousarray(numbers ^ np.uint8(middle(4))).reshape(-1), 4)
    return _nibbles(packed, numbers.shape, ir.DataType.INT4)


def _tensor(packed: ir.TensorProtocol, type_: ir.DataType, dims: tuple[int, ...]) -> ir.TensorProtocol:
    """Bytes of rows as a tensor of their type; an odd number of 4 bits leaves half a byte in each row."""
    rows = packed.numpy().reshape(-1, packed.shape.numpy()[-1])
    count = math.prod(dims) // len(rows)
    if type_.bitwidth == 8 or count % 2 == 0:
        return _viewed(packed, type_, dims)
    return _nibbles(pack(unpack(rows, 4, count).reshape(-1), 4), dims, type_)


def _viewed(tensor: ir.TensorProtocol, type_: ir.DataType, dims: tuple[int, ...]) -> ir.TensorProtocol:
    """The same bytes as numbers of another type or shape, without a copy where they lie in a file."""
    if isinstance(tensor, MappedTensor):
        return MappedTensor(tensor.file, tensor.offset, type_, ir.Shape(dims))
    if type_.bitwidth < 8:
        return _nibbles(tensor.numpy(), dims, type_)
    return ir.Tensor(tensor.numpy().reshape(dims))


def _nibbles(data: np.ndarray[Any, Any], dims: tuple[int, ...], type_: ir.DataType) -> ir.TensorProtocol:
    return ir.PackedTensor(np.ascontiguousarray(data).reshape(-1), type_, shape=ir.Shape(dims))


def _bias(node: ir.Node, channels: int) -> tuple[ir.Value | None, ir.Value | None]:
    """A Gemm's C as the kernel's bias, or as what is added behind it."""
    addend = node.inputs[2] if g.is_op(node, "Gemm") and len(node.inputs) > 2 else None
    if addend is None:
        return None, None
    tensor = g.constant(addend)
    if tensor is not None and tuple(tensor.shape.numpy()) == (channels,):
        return addend, None
    return None, addend
