"""The audit: green where ONNX Runtime computes on integers, and one readable reason where it does not."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.model import Model
from graphopt.proof.executed import Executed
from graphopt.runtime.worker import Worker
from graphopt_passes.quantize.audit import Problem, audit


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


class Builder:
    """Writes QDQ models node by node; outputs are named by the caller, everything else by number."""

    def __init__(self, opset=17, signed=False):
        self.opset, self.dtype = opset, np.int8 if signed else np.uint8
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []
        self.rng = np.random.default_rng(0)

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def floats(self, *shape):
        return self.constant(self.rng.standard_normal(shape).astype(np.float32))

    def input(self, *shape):
        name = f"in{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, 1, shape))
        return name

    def op(self, op_type, *inputs, out=None, **attributes):
        out = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [out], **attributes))
        return out

    def quantize(self, x, scale=0.02, zero=None, out=None):
        """Q and DQ; zero point in the middle."""
        middle = 128 if self.dtype == np.uint8 else 0
        grid = self.constant(np.float32(scale)), self.constant(self.dtype(middle if zero is None else zero))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *grid), *grid, out=out)

    def dequantize(self, array, scale, axis=None):
        axis = {} if axis is None else {"axis": axis}
        zero = np.zeros(np.shape(scale), array.dtype)
        grid = self.constant(np.float32(scale)), self.constant(zero)
        return self.op("DequantizeLinear", self.constant(array), *grid, **axis)

    def weight(self, *shape, axis=0):
        data = self.rng.integers(-100, 100, shape).astype(np.int8)
        return self.dequantize(data, np.full(shape[axis], 0.01), axis)

    def bias(self, count, scale=0.02 * 0.01):
        return self.dequantize(self.rng.integers(-900, 900, count).astype(np.int32), np.full(count, scale), 0)

    def give(self, *names):
        self.outputs += [helper.make_tensor_value_info(name, 1, None) for name in names]

    def model(self):
        data = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, data)
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10 if self.opset > 20 else 8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


def run(worker, builder):
    return audit(Executed.of(Model.of(builder.model()), worker=worker, threads=1))


def image(b):
    return b.quantize(b.op("Tanh", b.input(1, 16, 8, 8)))


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_residual_block_is_green(worker, opset):
    b = Builder(opset)
    x = image(b)
    a = b.op("Conv", x, b.weight(16, 16, 3, 3), b.bias(16), out="conv", pads=[1] * 4)
    a = b.op("Relu", a, out="relu")
    y = b.op("Conv", b.quantize(a, zero=0), b.weight(16, 1, 3, 3), out="deep", group=16, pads=[1] * 4)
    s = b.op("Relu", b.op("Add", b.quantize(y), x, out="add"), out="sum")
    p = b.op("MaxPool", b.quantize(s, zero=0), out="pool", kernel_shape=[2, 2])
    p = b.quantize(p, zero=0)
    c = b.op("Concat", p, p, out="cat", axis=1)
    b.op("Sigmoid", b.quantize(c, zero=3), out="out")
    b.give("out")
    found = run(worker, b)
    assert found.problems == ()
    assert found.fused == {"conv", "relu", "deep", "add", "sum", "pool", "cat"}


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_products_that_give_floats_are_green(worker, opset):
    """A transformer's feed-forward: no output is quantized, biases are integers."""
    b = Builder(opset)
    x = b.op("Tanh", b.input(8, 32))
    h = b.op("MatMul", b.quantize(x), b.weight(32, 64, axis=1), out="up")
    h = b.op("Tanh", b.op("Add", h, b.bias(64)))
    b.op("Gemm", b.quantize(h), b.weight(32, 64), b.bias(32), out="down", transB=1)
    b.op("MatMul", b.quantize(h), b.quantize(b.op("Transpose", h), 0.01), out="scores")
    b.op("Tanh", "down", out="out")
    b.give("out", "scores")
    found = run(worker, b)
    assert found.problems == ()
    assert found.fused == {"up", "down", "scores"}


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_hard_swish_that_is_written_out_is_green(worker, opset):
    """x · clip(x + 3, 0, 6): the Clip is what the grid behind it cuts off."""
    b = Builder(opset)
    x = b.quantize(b.op("Conv", image(b), b.weight(16, 16, 1, 1), b.bias(16), out="conv"))
    three = b.dequantize(np.uint8(255), 3 / 255)
    bounds = b.constant(np.float32(0)), b.constant(np.float32(6))
    gate = b.op("Clip", b.op("Add", x, three, out="plus"), *bounds, out="gate")
    y = b.quantize(b.op("Mul", x, b.quantize(gate, 6 / 255, zero=0), out="times"))
    b.op("Conv", y, b.weight(16, 16, 1, 1), b.bias(16), out="next")
    b.give(b.op("Neg", b.quantize("next")))
    found = run(worker, b)
    assert found.problems == ()
    assert {"conv", "plus", "times", "next"} <= found.fused


def test_floats_between_integers_are_no_problem(worker):
    b = Builder()
    y = b.quantize(b.op("Conv", image(b), b.weight(16, 16, 1, 1), out="one"))
    z = b.quantize(b.op("Tanh", y, out="island"))
    b.op("Neg", b.quantize(b.op("Conv", z, b.weight(16, 16, 1, 1), out="two")), out="out")
    b.give("out")
    found = run(worker, b)
    assert found.green
    assert found.fused == {"one", "two"}


def test_movers_on_integers_are_fused(worker):
    b = Builder()
    y = b.quantize(b.op("Conv", image(b), b.weight(16, 16, 1, 1), out="conv"))
    y = b.quantize(b.op("Reshape", y, b.constant(np.int64([1, 2, 8, 64])), out="split"))
    y = b.quantize(b.op("Transpose", y, out="shuffle", perm=[0, 2, 1, 3]))
    y = b.quantize(b.op("Reshape", y, b.constant(np.int64([1, 16, 8, 8])), out="join"))
    b.op("Neg", b.quantize(b.op("Conv", y, b.weight(16, 16, 1, 1), out="next")), out="out")
    b.give("out")
    found = run(worker, b)
    assert found.green
    assert found.fused == {"conv", "split", "shuffle", "join", "next"}


def test_who_asks_for_the_shape_of_integers_computes_on_none(worker):
    b = Builder()
    x = b.quantize(b.op("Tanh", b.input("n", 16, 8, 8)))
    y = b.quantize(b.op("Conv", x, b.weight(16, 16, 1, 1), out="conv"))
    b.op("Cast", b.op("Gather", b.op("Shape", y), b.constant(np.int64([0]))), out="dims", to=1)
    b.op("Neg", y, out="out")
    b.give("dims", "out")
    found = run(worker, b)
    assert found.green
    assert found.fused == {"conv"}


def test_weights_alone_are_told_apart(worker):
    b = Builder()
    b.op("Conv", b.input(1, 16, 8, 8), b.weight(16, 16, 1, 1), out="stored")
    b.op("MatMul", b.input(8, 32), b.weight(32, 16, axis=1), out="product")
    b.give("stored", "product")
    found = run(worker, b)
    assert found.green
    assert found.fused == set()
    assert found.weight_only == {"stored", "product"}


def test_a_float_model_is_green_and_nothing_is_fused(worker):
    b = Builder()
    b.op("Conv", b.input(1, 16, 8, 8), b.floats(16, 16, 1, 1), out="y")
    b.give("y")
    found = run(worker, b)
    assert (found.problems, found.fused, found.weight_only) == ((), set(), set())


def _conv(b, x, *rest, **attributes):
    return b.op("Conv", x, b.weight(16, 16, 1, 1), *rest, out="conv", **attributes)


def _two_readers(b):
    y = _conv(b, image(b))
    b.give(b.op("Neg", b.quantize(y)), b.op("Tanh", y, out="other"))


def _graph_output(b):
    y = _conv(b, image(b))
    b.give(y, b.op("Neg", b.quantize(y)))


def _not_quantized(b):
    b.give(b.op("Tanh", _conv(b, image(b)), out="other"))


def _relu_off_zero(b):
    b.give(b.op("Neg", b.quantize(b.op("Relu", _conv(b, image(b))), zero=10)))


def _clip_exceeded(b):
    bounds = b.constant(np.float32(0)), b.constant(np.float32(6))
    clipped = b.op("Clip", _conv(b, image(b)), *bounds)
    b.give(b.op("Neg", b.quantize(clipped, 8 / 255, zero=0)))


def _op_between(b):
    b.give(b.op("Neg", b.quantize(b.op("LeakyRelu", _conv(b, image(b)), out="other"))))


def _bias_scale(b):
    b.give(b.op("Neg", b.quantize(_conv(b, image(b), b.bias(16, 0.02 * 0.0105)))))


def _transposed(b):
    weight = b.dequantize(np.ones((16, 16, 2, 2), np.int8), 0.01)
    b.give(b.op("Neg", b.quantize(b.op("ConvTranspose", image(b), weight, out="conv"))))


def _relu_two_readers(b):
    y = b.op("Relu", _conv(b, image(b)))
    b.give(b.op("Neg", b.quantize(y, zero=0)), b.op("Tanh", y, out="other"))


def _summed_axis(b):
    y = b.op("MatMul", b.quantize(b.op("Tanh", b.input(8, 32))), b.weight(32, 16, axis=0), out="conv")
    b.give(b.op("Neg", b.quantize(y)))


def _alpha(b):
    x, w = b.quantize(b.op("Tanh", b.input(8, 32))), b.weight(32, 16, axis=1)
    b.give(b.op("Neg", b.quantize(b.op("Gemm", x, w, b.bias(16), out="conv", alpha=0.5))))


def _float_bias(b):
    x, w = b.quantize(b.op("Tanh", b.input(8, 32))), b.weight(32, 16, axis=1)
    b.give(b.op("Tanh", b.op("Gemm", x, w, b.floats(16), out="conv")))


def _float_bias_added(b):
    x, w = b.quantize(b.op("Tanh", b.input(8, 32))), b.weight(32, 16, axis=1)
    b.give(b.op("Tanh", b.op("Add", b.op("MatMul", x, w, out="conv"), b.floats(16))))


def _grids_differ(b):
    pooled = b.op("MaxPool", b.quantize(_conv(b, image(b), pads=[0] * 4)), out="pool", kernel_shape=[2, 2])
    b.give(b.op("Neg", b.quantize(pooled, 0.03)))


@pytest.mark.parametrize(
    ("build", "unit", "words"),
    [
        (_two_readers, "conv", "its output has 2 readers: QuantizeLinear making"),
        (_graph_output, "conv", "its output is a graph output"),
        (_not_quantized, "conv", "its output goes to Tanh making 'other' and not to QuantizeLinear"),
        (_relu_off_zero, "conv", "the grid behind its Relu reaches beyond what that lets through"),
        (_clip_exceeded, "conv", "the grid behind its Clip reaches beyond what that lets through"),
        (_op_between, "conv", "its output goes to LeakyRelu making 'other' and not to QuantizeLinear"),
        (_bias_scale, "conv", "the scale of its bias is not that of input times weight"),
        (_transposed, "conv", "ONNX Runtime has no integer ConvTranspose"),
        (_relu_two_readers, "conv", "its Relu has 2 readers"),
        (_summed_axis, "conv", "the scales of its weight lie along axis 0, not 1"),
        (_alpha, "conv", "its alpha or beta is not 1"),
        (_float_bias, "conv", "its bias is float and its output is not quantized"),
        (_float_bias_added, "conv", "its bias is float and its output is not quantized"),
        (_grids_differ, "pool", "the grids before and after it differ"),
    ],
)
def test_each_reason_is_found(worker, build, unit, words):
    b = Builder()
    build(b)
    found = run(worker, b)
    [problem] = [problem for problem in found.problems if problem.kind == "float"]
    assert problem.unit == unit
    assert problem.reason.startswith(words)
    assert unit not in found.fused
    assert str(problem) == f"'{unit}': {problem.reason}"


def test_a_pair_between_floats_bought_nothing(worker):
    b = Builder()
    y = b.op("Tanh", b.input(4, 8), out="tanh")
    b.op("Erf", b.quantize(y), out="out")
    b.give("out")
    assert run(worker, b).problems == (Problem("tanh", "useless", "it is quantized, but Erf takes floats"),)


def test_a_standalone_relu_is_named(worker):
    b = Builder()
    y = b.quantize(b.op("Relu", b.quantize(_conv(b, image(b)))), 0.03, zero=0)
    b.give(b.op("Neg", b.quantize(b.op("Conv", y, b.weight(16, 16, 1, 1), out="next"))))
    found = run(worker, b)
    assert [p.reason for p in found.problems] == [
        "it changes from one grid to another: a standalone Relu is between"
    ]
    assert {"conv", "next"} <= found.fused


def test_a_table_that_is_dequantized_as_a_whole_is_found(worker):
    b = Builder()
    rows = b.op("Cast", b.input(4), to=7)
    table = b.dequantize(np.ones((50, 8), np.uint8), 0.02)
    b.op("Tanh", b.op("Gather", table, rows, out="gather"), out="out")
    b.give("out")
    found = run(worker, b)
    assert found.problems == (Problem("gather", "weight", "its whole table is dequantized in every run"),)


def test_signed_branches_do_not_fuse_on_x64(worker):
    """What ONNX Runtime's own quantizer makes by default; where they do fuse, the audit has to be green."""
    b = Builder(signed=True)
    x = image(b)
    for name in ("one", "two"):
        b.give(b.op("Neg", b.quantize(b.op("Conv", x, b.weight(16, 16, 1, 1), out=name))))
    found = run(worker, b)
    for name in {"one", "two"} - found.fused:
        [problem] = [problem for problem in found.problems if problem.unit == name]
        assert "choose uint8" in problem.reason
    assert found.green == ({"one", "two"} <= found.fused)
