"""Operators that change nothing, except when they do."""

from __future__ import annotations

import numpy as np

from tests.traps.kit import Built, ints, model, scalar, special, trap


@trap()
def neutral_elements_that_broadcast() -> Built:
    return model(
        """g (float[N] x, float y1, bool[M] b, int32[N] i) => (float[A,N] y, float[3,N] z, float[1] q,
            bool[2,M] c, int32[1,N] j) {
        y = Mul(x, one2)
        z = Div(x, ones)
        q = Sub(y1, zero)
        c = And(b, true)
        j = Add(i, zero2)
    }""",
        one2=np.ones((1, 1), np.float32),
        ones=np.ones((3, 1), np.float32),
        zero=np.zeros(1, np.float32),
        true=np.ones((2, 1), bool),
        zero2=np.zeros((1, 1), np.int32),
    )


@trap()
def powers_of_other_types() -> Built:
    return model(
        """g (int32[3] i, float[N] x, int64[3] l) => (int32[3] j, float[N] y, int64[3] k, int32[3] d) {
        j = Pow(i, one)
        y = Pow(x, long)
        k = Pow(l, half)
        d = Div(i, int)
    }""",
        one=scalar(1),
        long=np.array(1),
        half=scalar(1),
        int=np.array(1, np.int32),
    )


@trap()
def where_that_broadcasts() -> Built:
    return model(
        """g (float[N,1] x, float[3] z) => (float[N,3] y, float[A,N,1] q, float[N,1] p) {
        y = Where(true, x, z)
        q = Where(true3, x, x)
        p = Where(false, s, x)
    }""",
        true=np.array(True),
        true3=np.ones((1, 1, 1), bool),
        false=np.zeros(1, bool),
        s=scalar(1),
    )


@trap()
def expands() -> Built:
    return model(
        """g (float[N,1] x) => (float[N,3] y, float[2,N,1] z, float[N,1] q, float[N,1] p, float[1,1,1] e) {
        y = Expand(x, to3)
        z = Expand(x, raise)
        q = Expand(x, ones)
        s = Shape(x)
        p = Expand(x, s)
        e = Expand(one, three)
    }""",
        to3=ints(3),
        ones=ints(1, 1),
        one=np.ones(1, np.float32),
        three=ints(1, 1, 1),
        **{"raise": ints(2, 1, 1)},
    )


@trap()
def dropouts_of_all_opsets() -> Built:
    return model("g (float[N] x) => (float[N] y, bool[N] m) { y, m = Dropout<ratio = 0.9> (x) }", opset=10)


@trap()
def dropout_of_opset_7_with_its_mask() -> Built:
    return model("g (float[N] x) => (float[N] z) { y, m = Dropout<ratio = 0.9> (x) z = Mul(y, m) }", opset=7)


@trap()
def dropout_whose_mask_is_used() -> Built:
    return model(
        """g (float[N] x) => (float[N] z) {
        y, m = Dropout(x, ratio, training)
        n = Not(m)
        z = Where(n, zero, y)
    }""",
        ratio=scalar(0.9),
        training=np.array(False),
        zero=scalar(0),
    )


@trap()
def max_pool_of_one_with_indices() -> Built:
    return model("""g (float[N,2,3,3] x) => (float[N,2,3,3] y, int64[N,2,3,3] i) {
        y, i = MaxPool<kernel_shape = [1,1]> (x)
    }""")


@trap()
def pools_of_one_with_special_values() -> Built:
    return special(
        model("""g (float[1,1,2,3] x) => (float[1,1,2,3] y, float[1,1,2,3] z) {
        y = MaxPool<kernel_shape = [1,1]> (x)
        z = AveragePool<kernel_shape = [1,1]> (x)
    }""")
    )


@trap()
def idempotents_with_special_values() -> Built:
    return special(
        model("""g (float[6] x) => (float[6] y, float[6] z, float[6] q, float[6] p) {
        a = Relu(x)
        y = Relu(a)
        b = Max(x)
        z = Sum(b)
        c = Mean(x)
        q = Neg(c)
        d = Neg(q)
        p = Sign(d)
    }""")
    )


@trap()
def sums_of_two_and_more() -> Built:
    return special(
        model("""g (float[N,1] x, float[1,M] y, double[N] d) => (float[N,M] a, float[N,M] b, double[N] c, float[N,1] e) {
        a = Sum(x, y)
        b = Sum(x, y, x)
        c = Sum(d, d)
        e = Sum(x)
    }""")
    )


@trap(keeps={"Div": 3})
def divisions_by_powers_of_two() -> Built:
    return special(
        model(
            """g (float[N,2] x, int32[N] i, double[N] d) => (float[N,2] a, float[N,2] b, float[N,2] c,
            int32[N] j, double[N] e, float[N,2] f) {
        a = Div(x, powers)
        b = Div(x, subnormal)
        c = Div(two, x)
        j = Div(i, whole)
        e = Div(d, tiny)
        f = Div(a, zero)
    }""",
            powers=np.array([-0.25, 8], np.float32),
            subnormal=np.array([2.0**-130, 2], np.float32),
            two=scalar(2),
            whole=np.array(2, np.int32),
            tiny=np.array(2.0**-300),
            zero=scalar(0),
        )
    )
