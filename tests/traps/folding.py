"""Constant folding: what C++ computes, in the type that it has, or not at all."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.traps.kit import Built, ints, model, normal, scalar, trap

SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5], np.float32)
INT32 = np.array([-7, 7, -1, 2**31 - 1, -(2**31)], np.int32)


@trap()
def integer_division_and_overflow() -> Built:
    return model(
        """g (int32[5] x) => (int32[5] y, int32[5] z, int32[5] q, int32[5] p) {
        a = Div(i, two)
        y = Add(a, x)
        b = Mul(i, i)
        z = Add(b, x)
        c = Mod(i, three)
        q = Add(c, x)
        d = Mod<fmod = 1> (i, three)
        p = Add(d, x)
    }""",
        i=INT32,
        two=np.array([2], np.int32),
        three=np.array([-3], np.int32),
    )


@trap()
def division_by_a_constant_zero_is_not_reached() -> Built:
    return model(
        """g (int32[2] x, bool[1] c) => (int32[2] y) {
        y = If(c) <
            then_branch = t () => (int32[2] r) { z = Sub(one, one) d = Div(one, z) r = Add(x, d) },
            else_branch = e () => (int32[2] r) { r = Neg(x) }
        >
    }""",
        one=np.array([1], np.int32),
    ), [{"x": np.array([1, 2], np.int32), "c": np.array([False])}]


@trap()
def bytes_wrap() -> Built:
    return model(
        """g (uint8[2] x) => (uint8[2] y, uint8[2] z) {
        a = Add(k, k)
        b = Sub(one, k)
        y = Max(a, x)
        z = Max(b, x)
    }""",
        k=np.array([200, 3], np.uint8),
        one=np.array([1], np.uint8),
    )


@trap()
def nan_infinity_and_minus_zero() -> Built:
    return model(
        """g (float[6] x) => (float[6] y, float[6] z, float[6] q, bool[6] n, float[12] r) {
        a = Neg(s)
        y = Identity(a)
        b = Mul(s, zero)
        z = Neg(b)
        d = Relu(s)
        q = Neg(d)
        n = IsNaN(b)
        e = Reciprocal(s)
        r = Concat<axis = 0> (e, x)
    }""",
        s=SPECIAL,
        zero=scalar(0),
    )


@trap()
def zero_times_x_is_not_zero() -> Built:
    return model(
        "g (float[6] x) => (float[6] y, float[6] z) { y = Mul(x, zero) z = Sub(x, x) }", zero=scalar(0)
    ), [{"x": SPECIAL}]


@trap()
def plus_zero_changes_minus_zero() -> Built:
    return model(
        """g (float[6] x) => (float[6] a, float[6] b, float[6] c, float[6] d, float[6] e) {
        a = Add(x, zero)
        b = Add(x, minus)
        c = Sub(x, zero)
        d = Sub(x, minus)
        e = Sum(x, zero)
    }""",
        zero=scalar(0),
        minus=scalar(-0.0),
    ), [{"x": SPECIAL}]


@trap()
def shape_with_start_and_end() -> Built:
    return model("""g (float[N,3,M,5] x) => (int64[A] a, int64[B] b, int64[C] c, int64[D] d) {
        a = Shape<start = 1> (x)
        b = Shape<start = -3, end = -1> (x)
        c = Shape<start = 3, end = 1> (x)
        d = Shape<start = -9, end = 99> (x)
    }""")


@trap()
def slices_clamp() -> Built:
    low, high = -(2**63), 2**63 - 1
    return model(
        """g (float[N,6] x) => (float[N,A] a, float[N,B] b, float[N,C] c, float[N,D] d, float[E,F] e) {
        a = Slice(x, s1, e1, axes, p1)
        b = Slice(x, s2, e2, axes)
        c = Slice(x, s3, e3, axes, p3)
        d = Slice(x, s4, e4, minus)
        e = Slice(x, s5, e5)
    }""",
        axes=ints(1),
        minus=ints(-1),
        s1=ints(high),
        e1=ints(low),
        p1=ints(-1),
        s2=ints(-99),
        e2=ints(-2),
        s3=ints(-1),
        e3=ints(-99),
        p3=ints(-2),
        s4=ints(4),
        e4=ints(2),
        s5=ints(0, 0),
        e5=ints(high, high),
    )


@trap()
def constants_in_all_spellings() -> Built:
    return model("""g (float[2] x, int64[2] i) => (float[2] y, int64[2] j, string[2] s, string t, float[2] q) {
        f = Constant<value_float = 1.5>()
        fs = Constant<value_floats = [0.1, 3.0]>()
        n = Constant<value_int = 7>()
        ns = Constant<value_ints = [1, -2]>()
        s = Constant<value_strings = ["a", "ü"]>()
        t = Constant<value_string = "text">()
        a = Add(x, f)
        y = Mul(a, fs)
        b = Add(i, n)
        j = Mul(b, ns)
        k = Pow(fs, f)
        q = Add(k, x)
    }""")


@trap()
def sparse_constants() -> Built:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("", TensorProto.FLOAT, [2], [3.0, 4.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [0, 3]),
        [4],
    )
    proto = model("g (float[4] x) => (float[4] y) { k = Constant<value_int = 1>() n = Neg(x) y = Add(n, x) }")
    proto.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    proto.graph.node[2].input[1] = "k"
    return proto


@trap()
def string_constants() -> Built:
    return model(
        """g (string[3] x) => (string[2,3] y, bool[3] e) {
        a = Constant<value_strings = ["", "b", "text 1"]>()
        b = Concat<axis = 0> (a, a)
        shape = Constant<value_ints = [2, 3]>()
        y = Reshape(b, shape)
        e = Equal(a, x)
    }""",
        opset=19,
    )


@trap(keeps={"Mystery": 2})
def unknown_domain_with_constant_inputs() -> Built:
    proto = model(
        """g (float[2] x) => (float[2] y, float[2] z) {
        a = Add(w, w)
        k = Neg(a)
        l = Neg(a)
        y = Add(x, k)
        z = Add(x, l)
    }""",
        imports='"com.example" : 1',
        w=normal(2),
    )
    for node in list(proto.graph.node)[1:3]:
        node.op_type, node.domain = "Mystery", "com.example"
    return proto, []  # ONNX Runtime has no such operator


@trap(keeps={"TreeEnsembleRegressor": 1})
def trees() -> Built:
    proto = model(
        "g (float[N,2] x) => (float[N,1] y) { k = Mul(w, w) z = Add(x, k) y = Neg(z) }",
        imports='"ai.onnx.ml" : 3',
        w=normal(2),
    )
    proto.graph.node[2].CopyFrom(
        helper.make_node(
            "TreeEnsembleRegressor",
            ["z"],
            ["y"],
            domain="ai.onnx.ml",
            n_targets=1,
            nodes_treeids=[0, 0, 0],
            nodes_nodeids=[0, 1, 2],
            nodes_featureids=[0, 0, 0],
            nodes_values=[0.5, 0.0, 0.0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0],
            nodes_hitrates=[1.0, 1.0, 1.0],
            nodes_missing_value_tracks_true=[0, 0, 0],
            target_treeids=[0, 0],
            target_nodeids=[1, 2],
            target_ids=[0, 0],
            target_weights=[1.0, -1.0],
            post_transform="NONE",
        )
    )
    onnx.checker.check_model(proto)
    return proto


@trap()
def labels_of_constants() -> Built:
    proto = model(
        "g (string[2] x) => (int64[2] y, int64[2] z) { y = Identity(i) z = Identity(i) }",
        imports='"ai.onnx.ml" : 3',
        i=ints(1, 2),
    )
    keys = {"keys_strings": ["text 0", "b"], "values_int64s": [5, 6], "default_int64": -9}
    texts = helper.make_tensor("s", TensorProto.STRING, [2], [b"b", b"q"])
    proto.graph.initializer.append(texts)
    for node, source in zip(proto.graph.node, ("x", "s"), strict=True):
        node.CopyFrom(
            helper.make_node("LabelEncoder", [source], list(node.output), domain="ai.onnx.ml", **keys)
        )
    return proto


@trap()
def maps_and_sequences_of_maps() -> Built:
    proto = model(
        "g (float[N,3] x) => (float[N,3] y) { a = Identity(x) y = Identity(a) }", imports='"ai.onnx.ml" : 3'
    )
    proto.graph.node[1].CopyFrom(
        helper.make_node("ZipMap", ["a"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"])
    )
    value = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(value))
    return proto


@trap()
def sequences_of_constants() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, int64 n, seq(float[A]) s, int64[B] d) {
        s = SequenceConstruct(a, b)
        one = Constant<value_int = 1>()
        e = SequenceAt(s, one)
        d = Shape(e)
        n = SequenceLength(s)
        q = SequenceInsert(s, x)
        m = Constant<value_int = -1>()
        f = SequenceAt(q, m)
        i = Identity(s)
        z = SequenceErase(i, m)
        o = ConcatFromSequence<axis = 0> (z)
        y = Add(f, o)
    }""",
        a=normal(2),
        b=normal(3),
    )


@trap()
def elements_of_a_sequence_differ_in_shape() -> Built:
    return model("""g (float[N] x, float[M,2] z, int64 i) => (int64[R] d, float[T] f) {
        s = SequenceConstruct(x, z)
        e = SequenceAt(s, i)
        d = Shape(e)
        one = Constant<value_ints = [-1]>()
        f = Reshape(e, one)
    }"""), [
        {"x": normal(3), "z": normal(4, 2), "i": np.array(0)},
        {"x": normal(3), "z": normal(4, 2), "i": np.array(1)},
    ]


@trap()
def optionals() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, bool h) {
        o = Optional(k)
        p = Identity(o)
        h = OptionalHasElement(p)
        e = OptionalGetElement(p)
        y = Add(x, e)
    }""",
        k=normal(2),
    )


@trap()
def data_dependent_shapes() -> Built:
    return model(
        """g (float[N,3] x) => (int64[2,A] a, float[B] b, int64[C] c, int64 s, float[D,3] d) {
        a = NonZero(k)
        b, , , c = Unique<sorted = 1> (x)
        s = Size(x)
        m = Greater(first, zero)
        first = ReduceSum<keepdims = 0> (x, one)
        d = Compress<axis = 0> (x, m)
    }""".replace(
            "m = Greater(first, zero)\n        first = ReduceSum<keepdims = 0> (x, one)",
            "first = ReduceSum<keepdims = 0> (x, one)\n m = Greater(first, zero)",
        ),
        k=np.array([[0, 1], [2, 0]], np.float32),
        one=ints(1),
        zero=scalar(0),
    )


@trap()
def folds_that_fail_do_not_stop_others() -> Built:
    return model(
        """g (float[2] x, bool c) => (float[2] y, float[2] z) {
        good = Add(w, w)
        y = If(c) <
            then_branch = t () => (float[2] r) { bad = Reshape(w, seven) d = Gather(bad, seven) r = Add(x, d) },
            else_branch = e () => (float[2] r) { r = Add(x, good) }
        >
        more = Mul(w, w)
        z = Sub(x, more)
    }""",
        w=normal(2),
        seven=ints(7),
    ), [{"x": normal(2), "c": np.array(False)}]
