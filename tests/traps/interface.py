"""The interface: inputs, outputs and documents must be what they were."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.traps.kit import ROUNDING, Built, drawn, ints, model, normal, scalar, trap


@trap()
def output_is_an_initializer() -> Built:
    return model("g (float[N] x) => (float[N] y, float[2] w) { y = Identity(x) }", w=normal(2))


@trap()
def outputs_are_equal_initializers() -> Built:
    return model(
        "g (float[2] x) => (float[2] y, float[2] v, float[2] w) { s = Add(v, w) y = Add(x, s) }",
        v=normal(2),
        w=normal(2),
        unused=normal(2),
    )


@trap()
def output_is_an_input() -> Built:
    return model("g (float[N] x) => (float[N] x, float[N] y) { a = Identity(x) y = Identity(a) }")


@trap()
def output_is_identity_of_an_input_twice() -> Built:
    return model("g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x) z = Identity(x) }")


@trap()
def output_is_identity_of_an_output() -> Built:
    return model("g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Identity(y) }")


@trap()
def equal_nodes_make_two_outputs() -> Built:
    return model("g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Neg(x) }")


@trap()
def output_is_a_folded_constant() -> Built:
    return model(
        "g (float[N] x) => (float[N] y, float[M] k) { k = Add(w, w) y = Add(x, s) }", w=normal(3), s=scalar(1)
    )


@trap()
def all_outputs_are_constant() -> Built:
    return model("g (float[N] x) => (float[3] k) { k = Mul(w, w) }", w=normal(3))


@trap()
def no_nodes() -> Built:
    return model("g (float[N] x) => (float[N] x) { }")


@trap()
def unused_inputs_stay() -> Built:
    return model(
        "g (float[N] x, int64[2] unused, float[M] dead) => (float[N] y) { d = Neg(dead) y = Neg(x) }"
    )


@trap(rtol=ROUNDING)
def overridable_weights_before_batch_norm() -> Built:
    defaults = {"w": normal(3, 2, 3, 3), "b": normal(3)}
    proto = model(
        """g (float[N,2,5,5] x) => (float[N,3,3,3] y) {
        c = Conv(x, w, b)
        y = BatchNormalization(c, s, t, m, v)
    }""",
        defaults=defaults,
        s=normal(3),
        t=normal(3, seed=1),
        m=normal(3, seed=2),
        v=normal(3) ** 2 + 1,
    )
    feeds = list(drawn(proto))
    return proto, [
        *feeds,
        {**feeds[0], "w": normal(3, 2, 3, 3, seed=9)},
        {**feeds[0], "b": normal(3, seed=9)},
    ]


@trap(rtol=ROUNDING)
def overridable_statistics() -> Built:
    proto = model(
        """g (float[N,2,5,5] x) => (float[N,3,3,3] y) {
        c = Conv(x, w)
        y = BatchNormalization(c, s, t, m, v)
    }""",
        defaults={"m": normal(3)},
        w=normal(3, 2, 3, 3),
        s=normal(3),
        t=normal(3),
        v=normal(3) ** 2 + 1,
    )
    feeds = list(drawn(proto))
    return proto, [*feeds, {**feeds[0], "m": normal(3, seed=9)}]


@trap()
def overridable_neutral_element() -> Built:
    proto = model(
        """g (float[N] x, bool[1] c) => (float[N] y) {
        a = Mul(x, one)
        b = Add(one, one)
        y = Mul(a, b)
    }""",
        defaults={"one": np.ones(1, np.float32)},
    )
    feeds = list(drawn(proto))
    return proto, [*feeds, {**feeds[0], "one": np.full(1, 7, np.float32)}]


@trap()
def overridable_shape_and_condition() -> Built:
    defaults = {"shape": ints(2, 6), "c": np.array(True)}
    proto = model(
        """g (float[3,4] x) => (float[A,B] y) {
        r = Reshape(x, shape)
        y = If(c) <
            then_branch = t () => (float[A,B] q) { q = Neg(r) },
            else_branch = e () => (float[A,B] q) { q = Abs(r) }
        >
    }""",
        defaults=defaults,
    )
    feeds = list(drawn(proto))
    return proto, [*feeds, {**feeds[0], "shape": ints(6, 2)}, {**feeds[0], "c": np.array(False)}]


@trap(rtol=ROUNDING, lists_constants=True)
def ir_3_lists_its_constants() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,3,3,3] y) {
        c = Conv(x, w)
        k = Mul(s, s)
        y = Mul(c, k)
    }""",
        opset=8,
        ir_version=3,
        defaults={"w": normal(3, 2, 3, 3), "s": normal(1)},
    )


@trap()
def documents_and_metadata() -> Built:
    proto = model(
        """g (float[N] x) => (float[N] y) {
        a = Identity(x)
        b = Neg(a)
        y = Relu(b)
    }""",
        ir_version=10,
    )
    proto.doc_string, proto.domain, proto.model_version = "a\nmodel", "org.example", 7
    proto.producer_name, proto.producer_version = "producer", "1.2"
    helper.set_model_props(proto, {"k": "v", "ü": ""})
    proto.graph.doc_string, proto.graph.name = "a graph", "graph/name"
    for index, part in enumerate((proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output)):
        part.metadata_props.add(key="key", value=str(index))
        part.doc_string = f"document {index}"
    return proto


@trap()
def declared_symbol_is_a_number() -> Built:
    return model("g (float[2,3] x) => (float[A,B] y, int64[C] s) { y = Transpose(x) s = Shape(y) }")


@trap()
def declared_dims_are_stale() -> Built:
    proto = model("""g (float[N,4] x) => (float[M,K] y, int64[2] s) <float[7,7] a, float[1,1] b> {
        a = Concat<axis = 0> (x, x)
        b = Neg(a)
        s = Shape(b)
        y = Reshape(b, s)
    }""")
    return proto


@trap()
def symbol_looks_generated() -> Built:
    return model("""g (float[d0,unk__0,_d1] x, float[NplusM] z) => (float[d1,d2] y, float[d3] q) {
        f = Flatten<axis = -1> (x)
        s = Shape(f)
        y = Reshape(f, s)
        q = Neg(z)
    }""")
