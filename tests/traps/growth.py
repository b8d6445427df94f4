"""Growth: what would make the file larger stays a computation; what no memory can hold is not tried."""

from __future__ import annotations

import numpy as np

from tests.traps.kit import ROUNDING, Built, ints, model, normal, scalar, trap

HUGE = 1 << 40


def never(operator: str, **weights: np.ndarray) -> Built:
    """A huge constant in a branch that is not taken."""
    proto = model(
        f"""g (float[1] x, bool c) => (float[1] y) {{
        y = If(c) <
            then_branch = t () => (float[1] r) {{
                h = {operator}
                k = Cast<to = 1> (h)
                s = ReduceSum<keepdims = 0> (k)
                o = Constant<value_ints = [1]> ()
                f = Reshape(s, o)
                r = Add(x, f)
            }},
            else_branch = e () => (float[1] r) {{ r = Neg(x) }}
        >
    }}""",
        **weights,
    )
    return proto, [{"x": normal(1), "c": np.array(False)}]


@trap()
def terabytes_of_zeros() -> Built:
    return never("ConstantOfShape(n)", n=ints(HUGE))


@trap()
def terabytes_of_numbers() -> Built:
    return never("Range(zero, n, one)", zero=np.array(0), n=np.array(HUGE), one=np.array(1))


@trap()
def terabytes_of_tiles() -> Built:
    return never("Tile(w, n)", w=normal(64), n=ints(HUGE))


@trap()
def terabytes_of_copies() -> Built:
    return never("Expand(w, n)", w=normal(1), n=ints(1 << 20, 1 << 20))


@trap()
def terabytes_of_one_hot() -> Built:
    return never(
        "OneHot(i, depth, values)", i=ints(1, 2), depth=np.array(HUGE), values=np.array([0, 1], np.float32)
    )


@trap()
def terabytes_of_padding() -> Built:
    return never("Pad(w, n)", w=normal(4), n=ints(0, HUGE))


@trap()
def terabytes_of_an_image() -> Built:
    return never("Resize(w, , , n)", w=normal(1, 1, 2, 2), n=ints(1, 1, 1 << 20, 1 << 20))


@trap()
def terabytes_of_a_window() -> Built:
    return never("HannWindow(n)", n=np.array(HUGE))


@trap()
def terabytes_of_a_product() -> Built:
    return never(
        "Mul(column, row)", column=np.ones((30000, 1), np.float32), row=np.ones((1, 30000), np.float32)
    )


@trap()
def constants_that_grow() -> Built:
    return model(
        """g (float[1] x, float[100,100] q) => (float[1000] a, float[5000] b, float[50,60] c, int64[3000] d,
            float[40,40] e, float[4,100] f) {
        z = ConstantOfShape<value = float[1] {2.0}> (s1)
        a = Add(z, x)
        t = Tile(w, s2)
        b = Add(t, x)
        u = Expand(x1, s3)
        c = Add(u, x)
        d = Range(zero, n, one)
        v = EyeLike(k)
        e = Add(v, x)
        h = OneHot(i, depth, values)
        f = Add(h, x)
        k = Slice(q, s4, e4)
    }""".replace("v = EyeLike(k)", "k = Slice(q, s4, e4) v = EyeLike(k)").replace(
            "\n        k = Slice(q, s4, e4)\n", "\n"
        ),
        s1=ints(1000),
        w=normal(50),
        s2=ints(100),
        x1=normal(1),
        s3=ints(50, 60),
        zero=np.array(0),
        n=np.array(3000),
        one=np.array(1),
        i=ints(0, 1, 2, 3),
        depth=np.array(100),
        values=np.array([0, 1], np.float32),
        s4=ints(0, 0),
        e4=ints(40, 40),
    )


@trap(rtol=ROUNDING)
def transpose_of_a_shared_weight() -> Built:
    return model(
        """g (float[N,40] x) => (float[N,40] y, float[N,40] z) {
        t = Transpose(w)
        y = MatMul(x, t)
        z = MatMul(x, w)
    }""",
        w=normal(40, 40),
    )


@trap()
def cast_of_a_weight_to_a_wider_type() -> Built:
    return model(
        "g (float[N,40] x) => (float[N,40] y) { f = Cast<to = 1> (w) y = Mul(x, f) }",
        w=normal(40, dtype=np.float16),
    )


@trap()
def large_cast_of_a_weight_to_a_wider_type() -> Built:
    return model(
        "g (float[1,4000] x) => (float[1,4000] y) { f = Cast<to = 1> (w) y = Mul(x, f) }",
        w=normal(4000, dtype=np.float16),
    )


@trap()
def many_views_of_one_weight() -> Built:
    views = "\n".join(f"v{i} = Reshape(w, s{i}) y{i} = Add(x, v{i})" for i in range(6))
    outputs = ", ".join(f"float[A{i},B{i}] y{i}" for i in range(6))
    shapes = {f"s{i}": ints(2**i, -1) for i in range(6)}
    return model(f"g (float[1] x) => ({outputs}) {{ {views} }}", w=normal(1024), **shapes)


@trap()
def one_weight_gathered_often() -> Built:
    rows = "\n".join(f"v{i} = Gather(w, k{i}) y{i} = Add(x, v{i})" for i in range(6))
    outputs = ", ".join(f"float[50] y{i}" for i in range(6))
    return model(
        f"g (float[1] x) => ({outputs}) {{ {rows} }}",
        w=normal(4, 50),
        **{f"k{i}": np.array(i % 4) for i in range(6)},
    )


@trap()
def shared_constant_of_a_chain() -> Built:
    return model(
        """g (float[1] x) => (float[100,30] y, float[100] z, float[30] q) {
        a = Mul(column, row)
        b = Add(a, one)
        y = Add(x, b)
        z = Add(x, c)
        c = Squeeze(column, axis)
        q = Add(x, row)
    }""".replace(
            "z = Add(x, c)\n        c = Squeeze(column, axis)", "c = Squeeze(column, axis) z = Add(x, c)"
        ),
        column=normal(100, 1),
        row=normal(30),
        one=scalar(1),
        axis=ints(1),
    )


@trap()
def weights_in_attributes() -> Built:
    values = ", ".join(f"{i}.5" for i in range(300))
    return model(f"""g (float[300] x) => (float[300] y, float[300] z) {{
        a = Constant<value_floats = [{values}]> ()
        b = Constant<value_floats = [{values}]> ()
        y = Add(x, a)
        c = Neg(b)
        z = Mul(y, c)
    }}""")


@trap()
def small_value_of_one_that_fits_only_later() -> Built:
    """Once equal weights are stored once, the file has room for the zeros."""
    return model(
        """g (float[200] x) => (float[100] z, float[1] s, float[200] a, float[200] b) {
        z = ConstantOfShape(n)
        t = Tile(z, three)
        s = ReduceSum(t)
        a = Add(x, w1)
        b = Mul(x, w2)
    }""",
        n=ints(100),
        three=ints(3),
        w1=normal(200),
        w2=normal(200),
    )
