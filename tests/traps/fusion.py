"""Linear algebra: what a fusion may move into weights, and when."""

from __future__ import annotations

import numpy as np

from tests.traps.kit import ROUNDING, Built, ints, model, normal, scalar, trap

BN = {"s": normal(3), "t": normal(3, seed=1), "m": normal(3, seed=2), "v": normal(3, seed=3) ** 2 + 1}


@trap(rtol=ROUNDING)
def shared_weight_of_a_fused_conv() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,3,5,5] y, float[N,3,5,5] z) {
        c = Conv<pads = [1,1,1,1]> (x, w)
        y = BatchNormalization(c, s, t, m, v)
        d = Conv<pads = [1,1,1,1]> (x, w)
        z = Relu(d)
    }""",
        w=normal(3, 2, 3, 3),
        **BN,
    )


@trap(rtol=ROUNDING)
def large_shared_weight_of_a_fused_conv() -> Built:
    return model(
        """g (float[N,64,5,5] x) => (float[N,3,5,5] y, float[N,3,5,5] z) {
        c = Conv<pads = [1,1,1,1]> (x, w)
        y = BatchNormalization(c, s, t, m, v)
        d = Conv<pads = [1,1,1,1]> (x, w)
        z = Relu(d)
    }""",
        w=normal(3, 64, 3, 3),
        **BN,
    )


@trap(rtol=ROUNDING)
def conv_output_is_an_output() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,3,3,3] c, float[N,3,3,3] y) {
        c = Conv(x, w)
        y = BatchNormalization(c, s, t, m, v)
    }""",
        w=normal(3, 2, 3, 3),
        **BN,
    )


@trap(rtol=ROUNDING)
def conv_output_is_captured() -> Built:
    return model(
        """g (float[N,2,5,5] x, bool q) => (float[N,3,3,3] y, float[N,3,3,3] z) {
        c = Conv(x, w)
        y = BatchNormalization(c, s, t, m, v)
        z = If(q) <
            then_branch = a () => (float[N,3,3,3] r) { r = Neg(c) },
            else_branch = e () => (float[N,3,3,3] r) { r = Abs(x2) }
        >
        x2 = Identity(y)
    }""".replace("z = If", "x2 = Identity(y)\n z = If", 1).replace(">\n        x2 = Identity(y)", ">"),
        w=normal(3, 2, 3, 3),
        **BN,
    )


@trap(rtol=ROUNDING)
def batch_norm_of_training() -> Built:
    return model(
        """g (float[4,2,5,5] x) => (float[4,3,3,3] y, float[3] a, float[3] b) {
        c = Conv(x, w)
        y, a, b = BatchNormalization<training_mode = 1, momentum = 0.5> (c, s, t, m, v)
    }""",
        w=normal(3, 2, 3, 3),
        **BN,
    )


@trap(rtol=ROUNDING)
def grouped_and_dilated_convs() -> Built:
    return model(
        """g (float[N,4,9,9] x) => (float[N,A,B,C] y, float[N,D,E,F] z, float[N,G,H,I] q) {
        c = Conv<group = 2, dilations = [2,2], strides = [2,1]> (x, w)
        y = Mul(c, k)
        d = Conv<group = 4> (x, depth, bias)
        z = Add(d, k8)
        e = ConvTranspose<group = 2, strides = [2,2], output_padding = [1,0]> (x, up)
        q = Mul(e, k6)
    }""",
        w=normal(6, 2, 3, 3),
        k=normal(6, 1, 1),
        depth=normal(8, 1, 3, 3),
        bias=normal(8),
        k8=normal(1, 8, 1, 1),
        up=normal(4, 3, 3, 3),
        k6=normal(6, 1, 1),
    )


@trap(rtol=ROUNDING)
def affine_before_a_grouped_conv() -> Built:
    return model(
        """g (float[N,4,9,9] x) => (float[N,A,B,C] y, float[N,D,E,F] z) {
        m = Mul(x, k)
        y = Conv<group = 2, pads = [1,1,1,1]> (m, w)
        a = Add(x, k)
        z = Conv<group = 2, pads = [1,1,1,1]> (a, w2)
    }""",
        w=normal(6, 2, 3, 3),
        w2=normal(6, 2, 3, 3, seed=1),
        k=normal(4, 1, 1),
    )


@trap(rtol=ROUNDING)
def shift_before_a_conv_that_pads_by_itself() -> Built:
    return model(
        """g (float[N,2,6,6] x) => (float[N,3,6,6] y) {
        a = Add(x, k)
        y = Conv<auto_pad = "SAME_UPPER"> (a, w)
    }""",
        w=normal(3, 2, 3, 3),
        k=normal(2, 1, 1),
    )


@trap(rtol=ROUNDING)
def constants_after_a_conv_along_other_axes() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,3,3,3] y, float[N,3,3,3] z, float[N,3,3,3] q, float[2,A,B,C,D] p) {
        c = Conv(x, w)
        y = Mul(c, along_width)
        d = Conv(x, w)
        z = Add(d, spatial)
        e = Conv(x, w)
        q = Mul(e, along_height)
        f = Conv(x, w)
        p = Add(f, raising)
    }""",
        w=normal(3, 2, 3, 3),
        along_width=normal(3),
        spatial=normal(3, 3, 3),
        along_height=normal(3, 1),
        raising=normal(2, 1, 3, 1, 1),
    )


@trap(rtol=ROUNDING)
def one_channel_broadcast_to_many() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,4,3,3] y, float[N,C,3,3] z) {
        c = Conv(x, w)
        y = Mul(c, k)
        d = Conv(x, w)
        z = Mul(d, none)
    }""",
        w=normal(1, 2, 3, 3),
        k=normal(4, 1, 1),
        none=normal(0, 1, 1),
    )


@trap(rtol=ROUNDING)
def operand_that_the_constant_raises_in_rank() -> Built:
    return model(
        """g (float[3] x, float[2,5,5] i) => (float[1,2] y, float[1,3,3,3] z, float[1,2] q) {
        a = Mul(x, k)
        y = Gemm(a, b)
        c = Mul(i, k4)
        z = Conv(c, w)
        d = Add(x, k)
        q = Gemm(d, b)
    }""",
        k=np.full((1, 1), 3, np.float32),
        b=normal(3, 2),
        k4=np.full((1, 1, 1, 1), 3, np.float32),
        w=normal(3, 2, 3, 3),
    )


@trap(rtol=ROUNDING)
def scalar_before_a_vector_product() -> Built:
    return model(
        """g (float[3] x, float[N,M,3] z) => (float[2] y, float[N,M,2] q, float[1,2] p) {
        a = Mul(x, k)
        y = MatMul(a, b)
        c = Mul(z, row)
        q = MatMul(c, b)
        d = Mul(x, k2)
        p = MatMul(d, b)
    }""",
        k=np.full(1, 3, np.float32),
        k2=np.full((1, 1), 3, np.float32),
        b=normal(3, 2),
        row=normal(3),
    )


@trap(rtol=ROUNDING)
def bias_of_a_product() -> Built:
    return model(
        """g (float[2,3] x, float[N,M,3] z, int32[2,3] i, float[M,3] s)
            => (float[2,4] y, float[N,M,4] q, float[A,2,4] r, int32[2,4] j, float[5,4] o, float[2,4] p) {
        a = MatMul(x, w)
        y = Add(a, full)
        b = MatMul(z, w)
        q = Add(b, bias)
        c = MatMul(x, w)
        r = Add(c, raising)
        d = MatMul(i, iw)
        j = Add(d, ib)
        one = Slice(x, zero, first)
        e = MatMul(one, w)
        o = Add(e, five)
        f = MatMul(x, w)
        p = Add(column, f)
    }""",
        w=normal(3, 4),
        full=normal(2, 4),
        bias=normal(4),
        raising=normal(1, 2, 4),
        iw=np.ones((3, 4), np.int32),
        ib=np.ones(4, np.int32),
        zero=ints(0),
        first=ints(1),
        five=normal(5, 4),
        column=normal(2, 1),
    )


@trap(rtol=ROUNDING)
def product_over_nothing() -> Built:
    proto = model(
        "g (float[N,K] x, float[K,4] w) => (float[N,4] y) { a = MatMul(x, w) y = Add(a, b) }", b=normal(4)
    )
    return proto, [{"x": normal(2, k), "w": normal(k, 4)} for k in (3, 0, 1)]


@trap(rtol=ROUNDING)
def gemms_with_factors() -> Built:
    return model(
        """g (float[N,3] x, float[3,N] u) => (float[N,4] y, float[N,4] z, float[N,4] q, float[N,4] p) {
        a = Gemm<alpha = 0.5, beta = 2.0> (x, w, c)
        y = Mul(a, k)
        b = Gemm<transA = 1, transB = 1, alpha = 3.0> (u, wt, c)
        z = Add(b, k)
        d = Mul(x, k3)
        q = Gemm<alpha = 0.5, beta = 2.0> (d, w, c)
        e = Add(u, k31)
        p = Gemm<transA = 1, alpha = 0.5> (e, w, c)
    }""",
        w=normal(3, 4),
        wt=normal(4, 3),
        c=normal(4),
        k=normal(4),
        k3=normal(3),
        k31=normal(3, 1),
    )


@trap()
def zero_pad_before_max_pool() -> Built:
    return model(
        """g (float[N,2,5,5] x) => (float[N,2,5,5] y) {
        n = Neg(a)
        y = MaxPool<kernel_shape = [3,3]> (p)
        p = Pad(n, pads)
        a = Abs(x)
    }""".replace(
            """n = Neg(a)
        y = MaxPool<kernel_shape = [3,3]> (p)
        p = Pad(n, pads)
        a = Abs(x)""",
            "a = Abs(x) n = Neg(a) p = Pad(n, pads) y = MaxPool<kernel_shape = [3,3]> (p)",
        ),
        pads=ints(0, 0, 1, 1, 0, 0, 1, 1),
    )


@trap(rtol=ROUNDING)
def pads_before_average_pools() -> Built:
    return model(
        """g (float[N,2,6,6] x) => (float[N,2,A,B] y, float[N,2,C,D] z, float[N,2,E,F] q, float[N,2,G,H] p) {
        a = Pad(x, pads)
        y = AveragePool<kernel_shape = [3,3]> (a)
        b = Pad(x, pads)
        z = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]> (b)
        c = Pad(x, pads, fill)
        q = AveragePool<kernel_shape = [3,3], count_include_pad = 1> (c)
        d = Pad(x, crop)
        p = AveragePool<kernel_shape = [3,3], count_include_pad = 1, ceil_mode = 1, strides = [2,2]> (d)
    }""",
        pads=ints(0, 0, 1, 1, 0, 0, 1, 1),
        fill=scalar(1),
        crop=ints(0, 0, -1, 1, 0, 0, 1, -1),
    )


@trap(rtol=ROUNDING)
def pads_before_convs() -> Built:
    return model(
        """g (float[N,2,6,6] x) => (float[N,3,A,B] y, float[N,3,C,D] z, float[N,3,E,F] q, float[N,3,G,H] p,
            float[I,3,J,K] o) {
        a = Pad<mode = "reflect"> (x, pads)
        y = Conv(a, w)
        b = Pad(x, pads, fill)
        z = Conv(b, w)
        c = Pad(x, crop)
        q = Conv<pads = [1,1,1,1]> (c, w)
        d = Pad(x, two, , axes)
        p = Conv<auto_pad = "VALID"> (d, w)
        e = Pad(x, batch)
        o = Conv<pads = [0,1,2,3]> (e, w)
    }""",
        opset=18,
        w=normal(3, 2, 3, 3),
        pads=ints(0, 0, 1, 2, 0, 0, 3, 0),
        fill=scalar(1),
        crop=ints(0, 0, -1, 1, 0, 0, 1, -1),
        two=ints(1, 2, 0, 3),
        axes=ints(-1, 2),
        batch=ints(1, 0, 1, 1, 0, 0, 0, 0),
    )


@trap(rtol=1e-3)
def extreme_factors_in_half_precision() -> Built:
    return model(
        """g (float16[1,2,3,3] x) => (float16[1,2,3,3] y) {
        a = Conv(x, w)
        b = Mul(a, tiny)
        c = Mul(b, tiny)
        y = Mul(c, large)
    }""",
        w=normal(2, 2, 1, 1, dtype=np.float16),
        tiny=scalar(1e-4, np.float16),
        large=scalar(6e4, np.float16),
    )
