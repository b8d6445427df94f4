"""If, Loop and Scan: captures, changing shapes, branches that never run."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.traps.kit import ROUNDING, Built, ints, model, normal, scalar, trap


@trap()
def loop_carried_value_grows() -> Built:
    return model("""g (float[1] x, int64 n) => (float[A] y, int64[1] s) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[K] a) => (bool d, float[L] r) {
            d = Identity(c)
            q = Shape(a)
            p = Reshape(a, q)
            r = Concat<axis = 0> (p, x)
        }>
        s = Shape(y)
    }"""), [{"x": normal(1), "n": np.array(n)} for n in (0, 1, 4)]


@trap()
def loop_carried_value_changes_its_rank() -> Built:
    return model("""g (float[2,3] x, int64 n) => (int64[A] s) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float a) => (bool d, float r) {
            d = Identity(c)
            z = Constant<value_ints = [0]>()
            r = Unsqueeze(a, z)
        }>
        s = Shape(y)
    }"""), [{"x": normal(2, 3), "n": np.array(n)} for n in (0, 1, 2)]


@trap()
def loop_with_constant_trip_count() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, float[A,2] z) {
        y, z = Loop(n, true, x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] r, float[2] o) {
            d = Identity(c)
            k = Add(w, w)
            r = Add(a, k)
            o = Identity(r)
        }>
    }""",
        n=np.array(3),
        true=np.array(True),
        w=normal(2),
    )


@trap()
def loop_over_constants_grows_a_scan_output() -> Built:
    return model(
        """g (float[64] x) => (float[A,64] y) {
        v, z = Loop(n, , w) <body = b (int64 i, bool c, float[64] a) => (bool d, float[64] r, float[64] o) {
            d = Identity(c)
            r = Neg(a)
            o = Identity(r)
        }>
        y = Add(z, x)
    }""",
        n=np.array(100),
        w=normal(64),
    )


@trap()
def loop_condition_ends_it() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, int64 n) {
        y, n = Loop(limit, true, x, zero) <body = b (int64 i, bool c, float[2] a, int64 m)
                => (bool d, float[2] r, int64 k) {
            r = Add(a, one)
            k = Add(m, step)
            d = Less(k, five)
        }>
    }""",
        limit=np.array(2**40),
        true=np.array(True),
        zero=np.array(0),
        one=scalar(1),
        step=np.array(1),
        five=np.array(5),
    )


@trap(rtol=ROUNDING)
def loop_captures_what_is_fused_and_shared() -> Built:
    return model(
        """g (float[1,2,5,5] x, int64 n) => (float[1,2,5,5] y, float[1,2,5,5] z) {
        c = Conv<pads = [1,1,1,1]> (x, w)
        z = BatchNormalization(c, s, t, m, v)
        y = Loop(n, , x) <body = b (int64 i, bool c0, float[1,2,5,5] a) => (bool d, float[1,2,5,5] r) {
            d = Identity(c0)
            e = Conv<pads = [1,1,1,1]> (a, w)
            f = Mul(e, s2)
            r = Add(f, v2)
        }>
    }""",
        w=normal(2, 2, 3, 3),
        s=normal(2),
        t=normal(2),
        m=normal(2),
        v=np.ones(2, np.float32),
        s2=normal(2, 1, 1),
        v2=np.ones(2, np.float32).reshape(2, 1, 1),
    ), [{"x": normal(1, 2, 5, 5), "n": np.array(n)} for n in (0, 2)]


@trap()
def loop_body_uses_one_name_with_the_next_loop() -> Built:
    body = "body = b (int64 i, bool c, float[2] a) => (bool d, float[2] r) { d = Identity(c) k = Add(w, w) r = Mul(a, k) }"
    return model(
        f"""g (float[2] x, int64 n) => (float[2] y, float[2] z) {{
        y = Loop(n, , x) <{body}>
        z = Loop(n, , y) <{body}>
    }}""",
        w=normal(2),
    ), [{"x": normal(2), "n": np.array(2)}]


@trap()
def scan_with_captures() -> Built:
    return model(
        """g (float[2] x, float[N,2] z) => (float[2] y, float[N,2] o) {
        y, o = Scan<num_scan_inputs = 1, body = b (float[2] a, float[2] e) => (float[2] r, float[2] q) {
            k = Identity(w)
            l = Mul(k, w)
            s = Shape(e)
            t = Reshape(e, s)
            r = Add(a, t)
            q = Mul(r, l)
        }> (x, z)
    }""",
        w=normal(2),
    )


@trap()
def branches_of_different_shapes() -> Built:
    return model("""g (float[2] x, float[3] z, bool c) => (int64[1] s, float[A] y) {
        y = If(c) <
            then_branch = t () => (float[2] r) { r = Neg(x) },
            else_branch = e () => (float[3] r) { r = Neg(z) }
        >
        s = Shape(y)
    }"""), [{"x": normal(2), "z": normal(3), "c": np.array(c)} for c in (True, False)]


@trap()
def branch_outputs_are_constants() -> Built:
    proto = model("""g (float[2] x, bool c) => (float[2] y) {
        r = If(c) <
            then_branch = t () => (float[2] k) { k = Constant<value = float[2] {1.0, 2.0}>() },
            else_branch = e () => (float[2] l) { l = Constant<value = float[2] {1.0, 2.0}>() }
        >
        y = Add(x, r)
    }""")
    for attribute, name in zip(proto.graph.node[0].attribute, "kl", strict=True):
        del attribute.g.node[:]
        attribute.g.initializer.append(numpy_helper.from_array(np.array([1, 2], np.float32), name))
    return proto


@trap()
def branch_gives_one_value_twice() -> Built:
    return model(
        """g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] p, float[2] q) {
        y, z = If(c) <
            then_branch = t () => (float[2] r, float[2] s) { r = Neg(x) s = Identity(r) },
            else_branch = e () => (float[2] r, float[2] s) { r = Identity(x) s = Identity(x) }
        >
        p, q = If(true) <
            then_branch = t2 () => (float[2] r, float[2] s) { r = Neg(x) s = Identity(r) },
            else_branch = e2 () => (float[2] r, float[2] s) { r = Identity(x) s = Identity(x) }
        >
    }""",
        true=np.array(True),
    )


@trap()
def constant_if_returns_an_outer_value() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, float[2] z) {
        n = Neg(x)
        y = If(false) <
            then_branch = t () => (float[2] r) { r = Exp(x) },
            else_branch = e () => (float[2] r) { r = Identity(n) }
        >
        z = If(false) <
            then_branch = t2 () => (float[2] r) { r = Exp(x) },
            else_branch = e2 () => (float[2] r) { r = Identity(w) }
        >
    }""",
        false=np.zeros(1, bool),
        w=normal(2),
    )


@trap()
def constant_if_inside_a_loop() -> Built:
    return model("""g (float[2] x, int64 n) => (float[2] y) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] r) {
            d = Identity(c)
            true = Constant<value = bool {1}>()
            r = If(true) <
                then_branch = t () => (float[2] q) { i2 = Cast<to = 1> (i) q = Add(a, i2) },
                else_branch = e () => (float[2] q) { q = Neg(a) }
            >
        }>
    }"""), [{"x": normal(2), "n": np.array(3)}]


@trap()
def constant_condition_computed_from_shapes() -> Built:
    return model(
        """g (float[N,3] x) => (float[A,3] y) {
        s = Shape(x)
        k = Gather(s, one)
        c = Equal(k, three)
        y = If(c) <
            then_branch = t () => (float[A,3] r) { r = Neg(x) },
            else_branch = e () => (float[B] r) { f = Constant<value_ints = [-1]>() r = Reshape(x, f) }
        >
    }""",
        one=np.array(1),
        three=np.array(3),
    )


@trap()
def dead_outputs_of_control_flow() -> Built:
    return model("""g (float[2] x, bool c) => (float[2] y) {
        y, dead = If(c) <
            then_branch = t () => (float[2] r, float[2] s) { r = Neg(x) s = Exp(x) },
            else_branch = e () => (float[2] r, float[2] s) { r = Abs(x) s = Sin(x) }
        >
    }""")


@trap()
def equal_nodes_in_branches_and_around() -> Built:
    return model("""g (float[2] x, bool c) => (float[2] y, float[2] z) {
        y = If(c) <
            then_branch = t () => (float[2] r) { a = Exp(x) b = Neg(a) r = Add(a, b) },
            else_branch = e () => (float[2] r) { a = Exp(x) r = Sqrt(a) }
        >
        a0 = Exp(x)
        z = Sqrt(a0)
    }""")


@trap()
def sequence_through_a_loop() -> Built:
    return model("""g (float[2] x, int64 n) => (float[A] y, seq(float[2]) s) {
        e = SequenceEmpty()
        s = Loop(n, , e) <body = b (int64 i, bool c, seq(float[2]) a) => (bool d, seq(float[2]) r) {
            d = Identity(c)
            k = Cast<to = 1> (i)
            v = Mul(x, k)
            r = SequenceInsert(a, v)
        }>
        y = ConcatFromSequence<axis = 0> (s)
    }"""), [{"x": normal(2), "n": np.array(3)}]


@trap()
def map_over_a_sequence() -> Built:
    return model(
        """g (float[2] x) => (seq(float[2]) y) {
        s = SequenceConstruct(x, x)
        y = SequenceMap <body = b (float[2] a) => (float[2] r) { k = Add(w, w) r = Mul(a, k) }> (s)
    }""",
        w=normal(2),
    )


@trap()
def dims_of_a_subgraph_are_its_own() -> Built:
    return model(
        """g (float[N,2] x, int64 n) => (float[A,2] y) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[N,2] a) => (bool d, float[N,2] r) {
            d = Identity(c)
            s = Shape(a)
            h = Concat<axis = 0> (a, x)
            t = Slice(h, one, end)
            r = Expand(t, last)
        }>
    }""",
        one=ints(1),
        end=ints(2**62),
        last=ints(1, 2),
    ), [{"x": normal(3, 2), "n": np.array(n)} for n in (0, 1, 3)]


@trap()
def wrongly_declared_branch_outputs() -> Built:
    proto = model("""g (float[N,2] x, bool c) => (float[A,B] y) {
        r = If(c) <
            then_branch = t () => (float[P,Q] q) { q = Neg(x) },
            else_branch = e () => (float[P,Q] q) { q = Transpose(x) }
        >
        s = Shape(r)
        y = Reshape(r, s)
    }""")
    onnx.checker.check_model(proto)
    return proto
