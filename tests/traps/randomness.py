"""Random operators: neither folded nor shared nor hidden."""

from __future__ import annotations

import numpy as np

from tests.traps.kit import Built, model, normal, scalar, trap

HEAD = '<domain: "local", opset_import: ["" : 17]>'


@trap(random=True, keeps={"RandomNormal": 2})
def two_random_tensors() -> Built:
    return model("""g (float[2] x) => (float[2] y, float[2] z) {
        a = RandomNormal<shape = [2]> ()
        b = RandomNormal<shape = [2]> ()
        y = Add(x, a)
        z = Add(x, b)
    }""")


@trap(random=True, keeps={"RandomUniform": 2})
def two_random_tensors_with_one_seed() -> Built:
    return model("""g (float[2] x) => (float[2] y, float[2] z) {
        a = RandomUniform<shape = [2], seed = 1.0> ()
        b = RandomUniform<shape = [2], seed = 1.0> ()
        y = Add(x, a)
        z = Add(x, b)
    }""")


@trap(random=True, keeps={"RandomNormalLike": 2, "Bernoulli": 2, "Multinomial": 1})
def random_tensors_like_constants() -> Built:
    return model(
        """g (float[4] x) => (float[4] y, float[4] z, float[4] p, float[4] q, int32[1,3] m) {
        a = RandomNormalLike(w)
        b = RandomNormalLike(w)
        y = Add(x, a)
        z = Add(x, b)
        c = Bernoulli(half)
        d = Bernoulli(half)
        p = Add(x, c)
        q = Add(x, d)
        m = Multinomial<sample_size = 3> (l)
    }""",
        w=normal(4),
        half=np.full(4, 0.5, np.float32),
        l=normal(1, 5),
    )


@trap(random=True, keeps={"Dropout": 2})
def two_training_dropouts() -> Built:
    return model(
        """g (float[100] x) => (float[100] y, float[100] z) {
        y = Dropout(x, half, true)
        z = Dropout(x, half, true)
    }""",
        half=scalar(0.5),
        true=np.array(True),
    )


@trap(random=True, keeps={"Dropout": 1})
def training_is_an_input() -> Built:
    return model("g (float[100] x, bool t) => (float[100] y) { y = Dropout(x, half, t) }", half=scalar(0.5))


@trap(random=True, keeps={"Dropout": 1})
def training_dropout_of_a_constant() -> Built:
    return model(
        "g (float[9] x) => (float[9] y) { d = Dropout(w, half, true) y = Add(x, d) }",
        w=normal(9),
        half=scalar(0.5),
        true=np.array(True),
    )


@trap(random=True, keeps={"RandomUniform": 1})
def random_inside_a_function() -> Built:
    return model(
        "g (float[2] x) => (float[2] y, float[2] z) { y = local.F(w) z = local.F(w) }",
        functions=f"{HEAD} F (a) => (b) {{ r = RandomUniform<shape = [2]> () b = Add(a, r) }}",
        w=normal(2),
    )


@trap(random=True, keeps={"RandomUniform": 1})
def random_inside_a_constant_loop() -> Built:
    return model(
        """g (float[2] x) => (float[2] y) {
        l = Loop(n, , w) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] r) {
            d = Identity(c)
            u = RandomUniform<shape = [2]> ()
            r = Add(a, u)
        }>
        y = Add(x, l)
    }""",
        n=np.array(3),
        w=normal(2),
    )


@trap(random=True, keeps={"RandomUniform": 1})
def random_inside_a_constant_branch() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, float[2] z) {
        p, q = If(true) <
            then_branch = t () => (float[2] r, float[2] s) { r = RandomUniform<shape = [2]> () s = Identity(r) },
            else_branch = e () => (float[2] r, float[2] s) { r = Identity(w) s = Identity(w) }
        >
        y = Add(x, p)
        z = Add(x, q)
    }""",
        true=np.array(True),
        w=normal(2),
    )


@trap()
def shape_of_a_random_tensor() -> Built:
    return model(
        """g (float[N,3] x) => (int64[2] s, float[N,3] y) {
        r = RandomNormalLike(x)
        s = Shape(r)
        z = Mul(r, zero)
        y = Add(x, z)
    }""",
        zero=scalar(0),
    )
