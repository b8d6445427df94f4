"""Cutting large raw_data out of a protobuf and splicing it back in."""

from __future__ import annotations

import random

import onnx
import pytest

from graphopt.errors import InvalidModelError
from graphopt.storage.wire import LARGE, MAX_DEPTH, Hole, Marker, Piece, cut, size, splice, varint


def tensor(name: str, data: bytes) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, dims=[len(data)], data_type=onnx.TensorProto.UINT8, raw_data=data)


def nested_model(sizes: list[int], seed: int = 0) -> onnx.ModelProto:
    """A tensor of each size in every place that may hold one."""
    draw = random.Random(seed)
    model = onnx.ModelProto(ir_version=10)
    graph = model.graph
    function = model.functions.add(name="f", domain="d")
    for index, length in enumerate(sizes):
        made = tensor(f"t{index}", draw.randbytes(length))
        graph.initializer.append(made)
        graph.sparse_initializer.add(values=made, indices=made)
        node = graph.node.add(op_type="Op")
        node.attribute.add(name="t", t=made)
        node.attribute.add(name="ts", tensors=[made, made])
        node.attribute.add(name="s", sparse_tensor=onnx.SparseTensorProto(values=made, indices=made))
        node.attribute.add(name="g").g.initializer.append(made)
        inner = node.attribute.add(name="gs").graphs.add().node.add()
        inner.attribute.add(name="t", t=made)
        function.node.add(op_type="Op").attribute.add(name="t", t=made)
        function.attribute_proto.add(name="default", t=made)
    return model


def all_tensors(message: object) -> list[onnx.TensorProto]:
    if isinstance(message, onnx.TensorProto):
        return [message]
    found = []
    for _, value in message.ListFields():  # type: ignore[attr-defined]
        for item in value if hasattr(value, "append") else [value]:
            if hasattr(item, "ListFields"):
                found += all_tensors(item)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_cut_leaves_the_ranges_and_nothing_else_changes(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([0, 1, 127, 128, LARGE - 1, LARGE, LARGE + 1, 20_000]) for _ in range(4)]
    model = nested_model(sizes, seed)
    data = model.SerializeToString()
    small = onnx.ModelProto.FromString(cut(data, "itself"))
    for before, after in zip(all_tensors(model), all_tensors(small), strict=True):
        assert (len(before.raw_data) >= LARGE) == (after.data_location == onnx.TensorProto.EXTERNAL)
        if len(before.raw_data) >= LARGE:
            place = {entry.key: entry.value for entry in after.external_data}
            offset, length = int(place["offset"]), int(place["length"])
            assert place["location"] == "itself"
            assert data[offset : offset + length] == before.raw_data
            after.raw_data = before.raw_data
            after.ClearField("external_data")
            after.ClearField("data_location")
    assert small == model


@pytest.mark.parametrize("seed", range(5))
def test_splice_is_what_protobuf_would_have_written(seed: int) -> None:
    draw = random.Random(seed)
    model = nested_model([draw.choice([5, 127, 128, 20_000, 300_000]) for _ in range(3)], seed)
    marked = onnx.ModelProto.FromString(model.SerializeToString())
    marker, payloads = Marker(), []
    for place in all_tensors(marked):
        payloads.append(place.raw_data)
        place.raw_data = marker.mark(len(payloads) - 1)
    pieces = splice(marked.SerializeToString(), marker, [len(payload) for payload in payloads])
    assert size(pieces) == model.ByteSize()
    assert filled(pieces, payloads) == model.SerializeToString()


def filled(pieces: list[Piece], payloads: list[bytes]) -> bytes:
    return b"".join(payloads[piece.index] if isinstance(piece, Hole) else piece for piece in pieces)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63])
def test_varint_is_protobufs(number: int) -> None:
    message = onnx.TensorProto(uint64_data=[number]).SerializeToString()
    assert message.endswith(varint(number))


def test_every_truncation_is_refused_or_parses_to_less() -> None:
    data = nested_model([LARGE, 10]).SerializeToString()
    draw = random.Random(0)
    for end in sorted(draw.sample(range(1, len(data)), 300)):
        try:
            onnx.ModelProto.FromString(cut(data[:end], "itself"))
        except InvalidModelError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_never_crash(seed: int) -> None:
    data = random.Random(seed).randbytes(5000)
    try:
        cut(data, "itself")
    except InvalidModelError as error:
        assert "not an ONNX model" in str(error)


def test_nesting_is_bounded() -> None:
    body = bytes(LARGE)
    for _ in range(MAX_DEPTH):  # two messages each: node, attribute, subgraph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            body = tag + varint(len(body)) + body
    with pytest.raises(InvalidModelError, match="deep"):
        cut(b"\x3a" + varint(len(body)) + body, "itself")
