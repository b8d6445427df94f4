"""equalize-channels: outputs stay within rounding, ranges become alike, and what must stay stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt import registry
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.quantize.equalize import EqualizeChannels, equalize
from graphopt_passes.quantize.layers import Layer
from graphopt_passes.quantize.weights import on_scales
from tests.passes.linear_cases import Case
from tests.support import compute, ops, parse, run_passes, serialized
from tools.models import cache_folder

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
BETWEEN = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "Add", "none")


def uneven(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights whose channels, on both sides, differ in size by orders of magnitude."""
    w = rng.standard_normal(shape)
    for axis in (0, 1):
        sizes = 10.0 ** rng.uniform(-1.5, 1.5, shape[axis])
        w *= sizes.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return w.astype(np.float32)


class Network:
    """A chain of layers that is drawn layer by layer."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.case = Case()
        self.rng = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        self.name, self.layers = "x", 0

    def constant(self, data: np.ndarray) -> str:
        return self.case.constant(f"c{len(self.case.initializers)}", data)

    def append(self, op_type: str, inputs: list[str], **attributes: object) -> None:
        output = f"v{len(self.case.nodes)}"
        self.name = self.case.add(op_type, inputs, output, **attributes)

    def conv(self, channels: int) -> int:
        group = self.draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
        out = group * self.draw(st.integers(1, 2)) if group > 1 else self.draw(st.integers(1, 6))
        size = self.draw(st.sampled_from([1, 3]))
        inputs = [self.name, self.constant(uneven(self.rng, (out, channels // group, size, size)))]
        if self.draw(st.booleans()):
            inputs.append(self.constant(self.rng.standard_normal(out).astype(np.float32)))
        self.append("Conv", inputs, group=group, pads=[size // 2] * 4)
        return out

    def gemm(self, columns: int) -> int:
        out, turned = self.draw(st.integers(1, 5)), self.draw(st.booleans())
        w = uneven(self.rng, (columns, out))
        weight = self.constant(w.T.copy() if turned else w)
        if self.draw(st.booleans()):
            shape = self.draw(st.sampled_from([(out,), (1, out), (1,), ()]))
            bias = self.constant(np.asarray(self.rng.standard_normal(shape), np.float32))
            self.append("Gemm", [self.name, weight, bias], transB=int(turned), alpha=0.5, beta=2.0)
        elif turned:
            self.append("Gemm", [self.name, weight], transB=1)
        else:
            self.append("MatMul", [self.name, weight])
        return out

    def between(self, channels: int, rank: int) -> None:
        kind = self.draw(st.sampled_from(BETWEEN))
        ones = (1,) * (rank - 2)
        if kind == "PRelu":
            slope = self.rng.standard_normal((channels, *ones)).astype(np.float32)
            self.append(kind, [self.name, self.constant(slope)])
        elif kind == "Add":
            shift = self.rng.standard_normal((channels, *ones)).astype(np.float32)
            self.append(kind, [self.constant(shift), self.name])
        elif "Pool" in kind and rank == 4:
            self.append(kind, [self.name], kernel_shape=[2, 2], pads=[0, 0, 1, 1])
        elif "elu" in kind.lower():
            self.append(kind, [self.name], **({"alpha": 0.3} if kind == "LeakyRelu" else {}))


@SETTINGS
@given(st.data(), st.booleans())
def test_random_networks_compute_the_same(worker: Worker, data: st.DataObject, flat: bool) -> None:
    net = Network(data)
    channels = 4
    for _ in range(data.draw(st.integers(2, 4))):
        channels = net.conv(channels)
        net.between(channels, 4)
    if flat:
        side = np.prod(
            compute(net.case.model(np.zeros((2, 4, 5, 5), np.float32), net.name), zeros())[0].shape[1:]
        )
        net.append("Flatten", [net.name])
        columns = net.gemm(int(side))
        net.between(columns, 2)
        net.gemm(columns)
    x = np.zeros((2, 4, 5, 5), np.float32)
    proto = net.case.model(x, net.name)
    if flat:
        del proto.graph.output[0].type.tensor_type.shape.dim[2:]
    model, run = run_passes(proto, EqualizeChannels(), worker=worker)
    assert not run.journal.notes, "it does not come to rest"
    feeds = {"x": net.rng.standard_normal(x.shape).astype(np.float32)}
    [old], [new] = compute(proto, feeds), compute(serialized(model), feeds)
    np.testing.assert_allclose(new, old, rtol=0, atol=2e-5 * sums(proto, feeds))


def zeros() -> dict[str, np.ndarray]:
    return {"x": np.zeros((2, 4, 5, 5), np.float32)}


def sums(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """A bound on what is summed up in one output: the network of absolute values on absolute inputs."""
    absolute = onnx.ModelProto()
    absolute.CopyFrom(proto)
    for tensor in absolute.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    [out] = compute(absolute, {name: np.abs(x) for name, x in feeds.items()})
    return float(np.abs(out).max())


def weights_of(model: Model) -> list[np.ndarray]:
    """The weights of the linear nodes, in their order."""
    nodes = [node for node in model.ir.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [node.inputs[1].const_value.numpy() for node in nodes]


def three_convs(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    case = Case()
    case.add("Conv", ["x", case.constant("w1", uneven(rng, (8, 3, 1, 1)))], "a")
    case.add("Relu", ["a"], "b")
    case.add("Conv", ["b", case.constant("w2", uneven(rng, (8, 1, 3, 3)))], "c", group=8)
    case.add("Relu", ["c"], "d")
    case.add("Conv", ["d", case.constant("w3", uneven(rng, (4, 8, 1, 1)))], "y")
    return case.model(np.zeros((1, 3, 6, 6), np.float32), "y")


def test_ranges_become_alike(worker: Worker) -> None:
    model, run = run_passes(three_convs(), EqualizeChannels(), worker=worker)
    assert run.journal.counts() == {"equalize-channels": 2}
    first, depthwise, last = (np.abs(w).max(axis=(2, 3)) for w in weights_of(model))
    for before, after in ((first.max(axis=1), depthwise[:, 0]), (depthwise[:, 0], last.max(axis=0))):
        np.testing.assert_allclose(before, after, rtol=0.08)  # 2 · 0.05 octaves


def test_one_scale_per_tensor_loses_less(worker: Worker) -> None:
    """Table 1 of the paper: without equalization, one scale cannot serve uneven channels."""
    feeds = {"x": np.random.default_rng(3).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    ratios = []
    for seed in range(8):
        proto = three_convs(seed)
        model, _ = run_passes(proto, EqualizeChannels(), worker=worker)
        [right] = compute(proto, feeds)
        errors = [
            np.square(compute(per_tensor(m), feeds)[0] - right).mean() for m in (proto, serialized(model))
        ]
        ratios.append(errors[1] / errors[0])
    assert np.exp(np.log(ratios).mean()) < 0.25, ratios


def per_tensor(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every weight rounded to int8 on one scale."""
    for tensor in proto.graph.initializer:
        w = numpy_helper.to_array(tensor)
        scale = np.array([np.abs(w).max() / 127], np.float32)
        tensor.CopyFrom(numpy_helper.from_array(on_scales(w, scale, 0).real(), tensor.name))
    return proto


def test_a_channel_without_weights_keeps_its_bias(worker: Worker) -> None:
    """A dead channel makes a constant; to scale its weights up would scale its bias up with them."""
    rng = np.random.default_rng(1)
    case = Case()
    w1, bias = rng.standard_normal((4, 3, 1, 1)), rng.standard_normal(4)
    w1[1] *= 1e-12
    w1[2] = 0
    tensors = {"w1": w1, "b1": bias, "w2": rng.standard_normal((2, 4, 1, 1))}
    names = [case.constant(name, data.astype(np.float32)) for name, data in tensors.items()]
    case.add("Conv", ["x", *names[:2]], "a")
    case.add("Conv", ["a", names[2]], "y")
    proto = case.model(np.zeros((1, 3, 2, 2), np.float32), "y")
    model, _ = run_passes(proto, EqualizeChannels(), worker=worker)
    new = model.ir.graph.node(0).inputs[2].const_value.numpy()
    assert np.abs(new).max() <= np.abs(bias).max() * (1 + 1e-6)
    feeds = {"x": rng.standard_normal((1, 3, 2, 2)).astype(np.float32)}
    np.testing.assert_allclose(compute(serialized(model), feeds)[0], compute(proto, feeds)[0], atol=1e-5)


WEIGHTS = """<float[2,2,1,1] v = {1,2,3,4}, float[2,2,1,1] w = {100,1,1,100}, float[2,2] m = {1,2,3,4},
    float[2,2] q = {100,1,1,100}, float zero = {0}, float six = {6}, float[2,1,1] k = {1,2},
    int64[1] one = {1}, float[2,1,1,1] g = {1,50}, float[2,2,1,1] t = {1,50,1,1}>"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Conv(x, v) b = Clip(a, zero, six) y = Conv(b, w)", "Clip making 'b' does not scale"),
        ("a = Conv(x, v) b = Sigmoid(a) y = Conv(b, w)", "does not scale"),
        ("a = Conv(x, v) b = PRelu(k, a) y = Conv(b, w)", "reads other channels"),
        ("a = Conv(x, v) b = Conv(a, w) y = Add(a, b)", "'y' is a graph output"),
        ("y = Conv(x, v) z = Conv(y, w)", "'y' is a graph output"),
        ("a = Conv(x, v) y = Conv(a, v)", "'v' is used elsewhere"),
        ("a = Conv(x, v) b = Add(a, x) y = Conv(b, w)", "'x' is a graph input"),
        ("a = Conv(x, v) y = MatMul(a, q)", "another axis"),
        ("a = MatMul(x, m) y = Conv(a, w)", "another axis"),
        ("a = MatMul(x, m) p = Conv(a, v) r = MatMul(a, q) y = Add(p, r)", "along another axis"),
        ("a = Conv(x, v) b = Conv(a, w) c = ConvTranspose(a, t) y = Add(b, c)", "does not scale"),
        ("a = Conv(x, v) b = Conv(a, w) c = Conv(t, a) y = Add(b, c)", "as its weight or bias"),
        ("a = Conv(x, v) b = Transpose<perm=[0,2,1,3]>(a) y = Conv(b, w)", "another axis"),
        ("a = Conv(x, v) b = ReduceSum<keepdims=1>(a, one) y = Conv(b, g)", "do not lie along one"),
    ],
)
def test_refusals(worker: Worker, body: str, reason: str) -> None:
    extra = ", float[i2,j2,k2,l2] z" if " z = " in body else ""
    proto = parse(f"g (float[1,2,2,2] x) => (float[i,j,k,l] y{extra}) {WEIGHTS} {{ {body} }}")
    model, run = run_passes(proto, EqualizeChannels(), worker=worker)
    assert not run.journal.rewrites
    assert any(reason in refusal.reason for refusal in run.journal.refusals), run.journal.refusals
    assert ops(model) == ops(Model.of(proto))


def test_a_layer_that_is_to_be_kept_stays(worker: Worker) -> None:
    _, run = run_passes(three_convs(), EqualizeChannels(), worker=worker, keep="make_c")
    assert not run.journal.rewrites
    assert any("--keep" in refusal.reason for refusal in run.journal.refusals)


def test_layers_inside_a_branch(worker: Worker) -> None:
    proto = parse(f"""g (float[1,2,2,2] x, bool on) => (float[1,2,2,2] y) {WEIGHTS} {{
      y = If(on) <
        then_branch = g1 () => (float[1,2,2,2] p) {{ a = Conv(x, v) b = Relu(a) p = Conv(b, w) }},
        else_branch = g2 () => (float[1,2,2,2] n) {{ n = Identity(x) }}>
    }}""")
    model, run = run_passes(proto, EqualizeChannels(), worker=worker)
    assert run.journal.counts() == {"equalize-channels": 1}
    feeds = {
        "x": np.random.default_rng(2).standard_normal((1, 2, 2, 2)).astype(np.float32),
        "on": np.array(True),
    }
    np.testing.assert_allclose(compute(serialized(model), feeds)[0], compute(proto, feeds)[0], rtol=1e-5)


def test_the_factors_are_those_of_the_tensors_between(worker: Worker) -> None:
    proto = three_convs()
    model = Model.of(proto)
    factors = equalize(model, Run(CPU, worker))
    assert set(factors) == {"b", "d"}
    after = serialized(model)
    for variant in (proto, after):
        for name in ("b", "d"):
            variant.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    feeds = {"x": np.random.default_rng(4).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    old, new = compute(proto, feeds), compute(after, feeds)
    for name, before, now in zip(("b", "d"), old[1:], new[1:], strict=True):
        np.testing.assert_allclose(now * factors[name].reshape(1, -1, 1, 1), before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("group", "turned"), [(1, False), (3, False), (1, True)])
def test_magnitudes_are_found_block_by_block(
    monkeypatch: pytest.MonkeyPatch, group: int, turned: bool
) -> None:
    monkeypatch.setattr("graphopt_passes.quantize.layers._BLOCK", 20)
    w = np.random.default_rng(5).standard_normal((5, 7) if turned else (6, 4, 3, 1)).astype(np.float32)
    case = Case()
    attributes = {} if turned else {"group": group}
    case.add("MatMul" if turned else "Conv", ["x", case.constant("w", w)], "y", **attributes)
    proto = case.model(np.zeros((1, 5) if turned else (1, 4 * group, 9, 9), np.float32), "y")
    layer = Layer.of(Model.of(proto).ir.graph.node(0))
    whole = np.abs(w).T[None] if turned else np.abs(w).max(axis=(2, 3)).reshape(group, 6 // group, 4)
    np.testing.assert_array_equal(layer.magnitudes(), whole)
    np.testing.assert_array_equal(layer.magnitudes(inputs=False), whole.max(axis=2, keepdims=True))
    np.testing.assert_array_equal(layer.magnitudes(channels=False), whole.max(axis=1, keepdims=True))


REAL = {"ppocr_cls": (1, 3, 48, 192), "shufflenet": (1, 3, 224, 224), "ppocrv4_det": (1, 3, 64, 96)}


@pytest.mark.parametrize("name", REAL)
def test_real_models(worker: Worker, name: str) -> None:
    path = cache_folder() / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"'python tools/models.py fetch {name}' brings it")
    model, run = Model.load(path), Run(CPU, worker)
    Pipeline(registry.parse("fold-constants,fuse-conv-bn,fuse-conv-affine,eliminate-dead-code").passes)(
        model, run
    )
    before = watched(serialized(model))
    assert EqualizeChannels().apply(model, run)
    after = watched(serialized(model))
    assert run.journal.counts()["equalize-channels"] >= 10
    feeds = {
        before.graph.input[0].name: np.random.default_rng(0).standard_normal(REAL[name]).astype(np.float32)
    }
    old, new = compute(before, feeds), compute(after, feeds)
    for a, b in zip(old, new, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-4 * np.abs(a).max())


def watched(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what its Sigmoid or Softmax reads as an output, so that saturation hides nothing."""
    for node in proto.graph.node:
        if node.output[0] == proto.graph.output[0].name:
            proto.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info(node.input[0]))
            break
    return proto
