"""Operators that move elements: reshapes, squeezes, transposes, slices."""

from __future__ import annotations

import numpy as np

from tests.traps.kit import Built, drawn, ints, model, normal, scalar, trap


@trap()
def reshapes_with_zeros() -> Built:
    proto = model(
        """g (float[N,M,4] x) => (float[A,B,C] y, float[D,E,F] z, float[G,H] q, float[I,J] p) {
        y = Reshape(x, copy)
        a = Reshape<allowzero = 1> (x, flat)
        z = Reshape<allowzero = 1> (a, two)
        q = Reshape<allowzero = 1> (x, none)
        b = Reshape<allowzero = 1> (x, none)
        p = Reshape(b, keep)
    }""",
        copy=ints(0, 4, 0),
        flat=ints(0, 5),
        two=ints(2, 0, 3),
        none=ints(7, 0),
        keep=ints(0, 0),
    )
    return proto, [{"x": normal(0, 3, 4)}, {"x": normal(0, 1, 4)}]


@trap()
def reshape_to_dims_that_may_be_zero() -> Built:
    proto = model(
        """g (float[N,M,4] x) => (float[N,B] y, float[C,4] z, float[N,M,4] q) {
        n = Shape<end = 1> (x)
        m = Shape<start = 1, end = 2> (x)
        p = Mul(m, four)
        s = Concat<axis = 0> (n, p)
        np = Mul(n, m)
        long = Concat<axis = 0> (np, four)
        y = Reshape(x, s)
        z = Reshape(y, long)
        back = Concat<axis = 0> (n, m, four)
        q = Reshape(z, back)
    }""",
        four=ints(4),
    )
    return proto, [*drawn(proto), {"x": normal(0, 3, 4)}]


@trap()
def chains_of_reshapes() -> Built:
    return model(
        """g (float[N,3,4] x) => (float[A,B] y, float[C,D,E] z, float[F] q) {
        a = Flatten<axis = -1> (x)
        b = Reshape(a, flat)
        y = Reshape(b, six)
        c = Unsqueeze(x, zero)
        d = Squeeze(c, zero)
        z = Identity(d)
        e = Flatten<axis = 0> (x)
        q = Squeeze(e, zero)
    }""",
        flat=ints(-1),
        six=ints(-1, 6),
        zero=ints(0),
    )


@trap()
def squeezes_without_axes() -> Built:
    proto = model(
        """g (float[N,1,M] x) => (float[A] y, float[B] z, float[1,N,1,M] q, float[C] p) {
        a = Squeeze(x)
        y = Reshape(a, flat)
        b = Unsqueeze(x, none)
        z0 = Squeeze(b, none)
        z = Reshape(z0, flat)
        q = Unsqueeze(x, first)
        s = Squeeze(q)
        p = Reshape(s, flat)
    }""",
        flat=ints(-1),
        none=ints(),
        first=ints(0),
    )
    return proto


@trap()
def squeeze_of_nothing_squeezes_all() -> Built:
    return model(
        """g (float[N,1,M] x) => (int64[A] y, float[B,C,D,E,F] z) {
        b = Unsqueeze(x, none)
        c = Squeeze(b, none)
        y = Shape(c)
        e = Unsqueeze(x, none)
        z = Unsqueeze(e, two)
    }""",
        none=ints(),
        two=ints(0, -1),
    )


@trap()
def axes_of_rank_0() -> Built:
    return model(
        """g (float[N,M] x) => (float[A,B,C,D] y) {
        a = Unsqueeze(x, one)
        y = Unsqueeze(a, zero)
    }""",
        one=np.array(1),
        zero=np.array(0),
    )


@trap()
def axes_before_opset_13() -> Built:
    return model(
        """g (float[N,M] x) => (float[A,B,C,D] y, float[N,M] z) {
        a = Unsqueeze<axes = [1]> (x)
        y = Unsqueeze<axes = [0]> (a)
        b = Unsqueeze<axes = [-1]> (x)
        z = Squeeze<axes = [2]> (b)
    }""",
        opset=11,
    )


@trap()
def transposes_with_a_shared_middle() -> Built:
    return model("""g (float[N,3,4] x) => (float[N,3,4] y, float[4,N,3] t, float[3,4,N] z, float[A,1] q) {
        t = Transpose<perm = [2,0,1]> (x)
        y = Transpose<perm = [1,2,0]> (t)
        z = Transpose<perm = [2,0,1]> (t)
        f = Flatten<axis = 3> (x)
        q = Transpose<perm = [0,1]> (f)
    }""")


@trap()
def transpose_of_a_transpose_without_perm() -> Built:
    return model("""g (float[N,3,4] x) => (float[A,B,C] y, float[D,E,F] z) {
        a = Transpose(x)
        y = Transpose<perm = [0,2,1]> (a)
        b = Transpose<perm = [1,2,0]> (x)
        z = Transpose(b)
    }""")


@trap()
def one_part() -> Built:
    return model(
        """g (float[N,5] x) => (float[N,5] y, float[N,5] z, float[N,2] a, float[N,3] b) {
        y = Concat<axis = 1> (x)
        z = Split<axis = 1> (x)
        a, b = Split<axis = 1> (x, sizes)
    }""",
        sizes=ints(2, 3),
    )


@trap()
def uneven_split() -> Built:
    return model(
        """g (float[N,5] x) => (float[N,A] a, float[N,B] b, int64[2] s) {
        a, b = Split<axis = 1, num_outputs = 2> (x)
        s = Shape(b)
    }""",
        opset=18,
    )


@trap()
def slices_that_start_late_are_no_space_to_depth() -> Built:
    text = "\n".join(f"p{i}{j} = Slice(x, s{i}{j}, e, axes, steps)" for i in (2, 3) for j in (2, 3))
    starts = {f"s{i}{j}": ints(i, j) for i in (2, 3) for j in (2, 3)}
    return model(
        f"g (float[N,3,8,8] x) => (float[N,12,3,3] y) {{ {text} y = Concat<axis = 1> (p22, p23, p32, p33) }}",
        e=ints(2**62, 2**62),
        axes=ints(2, 3),
        steps=ints(2, 2),
        **starts,
    )


@trap()
def range_counts_down() -> Built:
    return model(
        """g (int64 n) => (int64[A] y, float[B] z) {
        y = Range(n, zero, minus)
        z = Range(f, one, half)
    }""",
        zero=np.array(0),
        minus=np.array(-2),
        f=scalar(0),
        one=scalar(1),
        half=scalar(0.3),
    ), [{"n": np.array(7)}, {"n": np.array(0)}, {"n": np.array(-3)}]


@trap()
def shape_of_a_reshape_to_more_dims() -> Built:
    return model(
        """g (float[N,4] x, int64[2] d) => (int64[K] y) {
        s = Shape(x)
        t = Concat<axis = 0> (d, one, s)
        r = Reshape(x, t)
        q = Shape(r)
        y = Max(q, zero)
    }""",
        one=ints(1),
        zero=ints(0),
    ), [{"x": normal(n, 4), "d": ints(1, 1)} for n in (1, 3)]
