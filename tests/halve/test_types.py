"""The types of values, where only schemas and structure say them."""

from __future__ import annotations

import onnx

from graphopt import graph as g
from graphopt.model import Model
from graphopt_passes.halve.signatures import halved, inner, is_float, signature
from graphopt_passes.halve.types import Types
from tests.support import parse


def types(proto: onnx.ModelProto) -> dict[str, str]:
    model = Model.of(proto).ir
    found = Types(model)
    return {value.name or "": found.of(value) for graph in g.graphs(model) for value in g.defined(graph)}


def test_sequences_and_optionals() -> None:
    found = types(
        parse(
            """g (float[4,2] x, int64 i) => (float[2,2] y, bool h) <int64 two = {2}> {
            s = SplitToSequence<axis = 0>(x, two)
            t = SequenceInsert(s, x)
            e = SequenceAt(t, i)
            o = Optional(e)
            h = OptionalHasElement(o)
            y = OptionalGetElement(o)
            z = SequenceEmpty<dtype = 11>()
        }"""
        )
    )
    sequence = "seq(tensor(float))"
    assert (found["s"], found["t"], found["e"]) == (sequence, sequence, "tensor(float)")
    assert (found["o"], found["h"], found["y"]) == (
        "optional(tensor(float))",
        "tensor(bool)",
        "tensor(float)",
    )
    assert found["z"] == "seq(tensor(double))"


def test_bodies_have_the_types_of_what_they_are_given() -> None:
    found = types(
        parse(
            """g (double[2] x, int64 n) => (double[2] y, bool[S] z) {
            y, z = Loop(n, , x) <body = b (int64 i, bool c, double[2] a) => (bool d, double[2] r, bool k) {
                d = Identity(c)
                r = Neg(a)
                k = Identity(c)
            }>
        }"""
        )
    )
    assert (found["a"], found["r"], found["y"]) == ("tensor(double)",) * 3
    assert found["z"] == "tensor(bool)"


def test_functions_have_the_types_of_their_calls() -> None:
    found = types(
        parse(
            "g (double[2] x) => (double[2] y) { a = local.f(x) y = local.f(a) }",
            functions='<domain: "local", opset_import: ["" : 17]> f (p) => (s) { s = Add(p, p) }',
        )
    )
    assert (found["p"], found["s"], found["y"]) == ("tensor(double)",) * 3


def test_text_of_types() -> None:
    assert is_float("seq(tensor(float))") and not is_float("seq(tensor(float16))")
    assert inner("optional(seq(tensor(float)))") == "seq(tensor(float))"
    assert inner("tensor(float)") == "tensor(float)"
    assert halved("seq(tensor(float))", "bfloat16") == "seq(tensor(bfloat16))"


def test_signatures_follow_the_opset() -> None:
    conv, cast = signature("Conv", 11, ""), signature("Cast", 13, "")
    assert conv is not None and "tensor(bfloat16)" not in conv.input(0).types
    newer = signature("Conv", 22, "")
    assert newer is not None and "tensor(bfloat16)" in newer.input(0).types
    assert cast is not None and "tensor(bfloat16)" in cast.output(0).types
    resize = signature("Resize", 13, "")
    assert resize is not None and resize.input(2).types == {"tensor(float)"}
    assert signature("Anything", 1, "mine") is None
