"""Names and scope: captures, siblings, shadows, strange and missing names."""

from __future__ import annotations

import numpy as np
import onnx

from tests.traps.kit import ROUNDING, Built, ints, model, normal, renamed, scalar, trap


@trap()
def siblings_reuse_a_name() -> Built:
    return model("""g (float[N] x, bool c) => (float[N] y) {
        one = Constant<value = float {1.0}>()
        y = If(c) <
            then_branch = t () => (float[N] r) { k = Add(one, one) s = Mul(x, k) r = Identity(s) },
            else_branch = e () => (float[N] r) { k = Sub(one, x) s = Identity(k) r = Add(s, s) }
        >
    }""")


@trap()
def capture_through_two_levels() -> Built:
    return model(
        """g (float[N] x, bool c, bool d) => (float[N] y) {
        a = Identity(x)
        b = Neg(a)
        y = If(c) <
            then_branch = t () => (float[N] r) {
                r = If(d) <
                    then_branch = tt () => (float[N] q) { q = Mul(b, a) },
                    else_branch = te () => (float[N] q) { z = Neg(b) q = Add(z, w) }
                >
            },
            else_branch = e () => (float[N] r) { r = Identity(b) }
        >
    }""",
        w=scalar(3),
    )


@trap()
def both_branches_bring_the_same_names() -> Built:
    return model("""g (float[N] x) => (float[N] y, float[N] z) {
        true = Constant<value = bool {1}>()
        false = Constant<value = bool {0}>()
        y = If(true) <
            then_branch = t () => (float[N] r) { k = Neg(x) r = Exp(k) },
            else_branch = e () => (float[N] r) { k = Abs(x) r = Sqrt(k) }
        >
        z = If(false) <
            then_branch = t2 () => (float[N] r) { k = Neg(x) r = Exp(k) },
            else_branch = e2 () => (float[N] r) { k = Abs(x) r = Sin(k) }
        >
    }""")


@trap()
def branch_names_look_generated() -> Built:
    return renamed(
        model(
            """g (float[2] x) => (float[2] y, float[2] z) {
        true = Constant<value = bool {1}>()
        a = Add(w, w)
        y = If(true) <
            then_branch = t () => (float[2] r) { k = Add(a, v) l = Mul(k, k) r = Add(l, x) },
            else_branch = e () => (float[2] r) { r = Identity(x) }
        >
        z = Add(a, x)
    }""",
            w=normal(2),
            v=normal(2, seed=1),
        ),
        {"k": "#0", "l": "#1", "a": "#2", "w": "a_1", "v": "#3"},
    )


@trap()
def names_with_slashes_colons_and_unicode() -> Built:
    return renamed(
        model(
            """g (float[N,3] x) => (float[N,3] y) {
        a = Identity(x)
        b = Add(w, w)
        y = Mul(a, b)
    }""",
            w=normal(3),
        ),
        {"x": "ä/输入:0", "a": "a b\n", "b": "::/:", "w": "\N{SNOWMAN}", "y": "y/\N{GRINNING FACE}"},
    )


@trap()
def equal_and_empty_node_names() -> Built:
    proto = model(
        """g (float[N] x) => (float[N] y) {
        a = Neg(x)
        b = Neg(a)
        c = Add(w, w)
        d = Mul(b, c)
        y = Relu(d)
    }""",
        w=scalar(2),
    )
    for index, node in enumerate(proto.graph.node):
        node.name = "same" if index % 2 else ""
    return proto, []  # ONNX Runtime refuses equal names


@trap()
def omitted_inputs_in_the_middle() -> Built:
    return model(
        """g (float[1,1,4,4] x) => (float[1,1,8,8] y, float[N] z) {
        y = Resize<mode = "linear"> (x, , , sizes)
        z = Clip(flat, , high)
        flat = Reshape(x, one)
    }""".replace(
            "z = Clip(flat, , high)\n        flat = Reshape(x, one)",
            "flat = Reshape(x, one)\n z = Clip(flat, , high)",
        ),
        sizes=ints(1, 1, 8, 8),
        one=ints(-1),
        high=scalar(0.25),
    )


@trap()
def omitted_outputs_in_the_middle() -> Built:
    return model(
        """g (float[4,1,3] x) => (float[1,1,2] c) {
        a, , c = LSTM<hidden_size = 2> (x, w, r)
    }""",
        w=normal(1, 8, 3),
        r=normal(1, 8, 2, seed=1),
    )


@trap()
def subgraph_value_named_like_the_folded_one() -> Built:
    return model(
        """g (float[2] x, bool c) => (float[2] y) {
        k = Add(w, w)
        y = If(c) <
            then_branch = t () => (float[2] r) { k_1 = Mul(k, x) r = Add(k_1, k) },
            else_branch = e () => (float[2] r) { k_1 = Sub(k, x) r = Neg(k_1) }
        >
    }""",
        w=normal(2),
    )


@trap(rtol=ROUNDING)
def fresh_names_are_taken() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,3,5,5] y, float[3] w_1, float[3] conv_bias) {
        conv = Conv<pads = [1,1,1,1]> (x, w)
        y = Add(conv, k)
        w_1 = Identity(b)
        conv_bias = Neg(b)
    }""",
        w=normal(3, 2, 3, 3),
        k=normal(3, 1, 1),
        b=normal(3),
    )


@trap()
def initializer_in_a_subgraph() -> Built:
    proto = model(
        """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <
            then_branch = t () => (float[2] r) { s = Constant<value = float[2] {1.0, 2.0}>() r = Add(x, s) },
            else_branch = e () => (float[2] r) { s = Constant<value = float[2] {1.0, 2.0}>() r = Mul(x, s) }
        >
    }""",
        outer=np.array([1, 2], np.float32),
    )
    for attribute in proto.graph.node[0].attribute:
        constant = attribute.g.node[0].attribute[0].t
        del attribute.g.node[0]
        attribute.g.initializer.append(constant)
        attribute.g.initializer[0].name = "s"
    return proto


@trap()
def constant_if_brings_an_initializer() -> Built:
    proto = model(
        """g (float[2] x) => (float[2] y, float[2] z) {
        true = Constant<value = bool {1}>()
        y = If(true) <
            then_branch = t () => (float[2] r) { r = Add(x, s) },
            else_branch = e () => (float[2] r) { r = Mul(x, s) }
        >
        z = Sub(x, s)
    }""",
        s=np.array([3, 4], np.float32),
    )
    for attribute in proto.graph.node[1].attribute:
        attribute.g.initializer.append(onnx.numpy_helper.from_array(np.array([5, 6], np.float32), "inner"))
        attribute.g.node[0].input[1] = "inner"
    return proto


@trap()
def five_thousand_nodes() -> Built:
    nodes = "\n".join(f"v{i + 1} = {'Sin' if i % 2 else 'Cos'}(v{i})" for i in range(5000))
    return model(f"g (float[2] v0) => (float[2] v5000) {{ {nodes} }}")


@trap()
def five_thousand_constant_nodes() -> Built:
    nodes = "\n".join(f"v{i + 1} = {'Sin' if i % 2 else 'Cos'}(v{i})" for i in range(5000))
    return model(f"g (float[2] x) => (float[2] y) {{ {nodes} y = Add(x, v5000) }}", v0=normal(2))


@trap()
def thousand_identities() -> Built:
    nodes = "\n".join(f"v{i + 1} = {'Identity' if i % 3 else 'Neg'}(v{i})" for i in range(1000))
    return model(f"g (float[2] v0) => (float[2] v1000) {{ {nodes} }}")


@trap()
def thirty_nested_ifs() -> Built:
    text = "r = Neg(x)"
    for level in range(30):
        text = f"""r = If(c) <
            then_branch = t{level} () => (float[2] r) {{ {text.replace("r =", f"q{level} =", 1)} r = Add(q{level}, x) }},
            else_branch = e{level} () => (float[2] r) {{ r = Abs(x) }}
        >"""
    return model(f"g (float[2] x, bool c) => (float[2] r) {{ {text} }}")
