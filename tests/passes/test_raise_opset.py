"""raise-opset: every operator that changed since opset 7 means the same in the newer one, or all stays."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.backend.test import loader
from onnx.defs import OpSchema

from graphopt.interface import Interface, differences, notices
from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.runtime.worker import Worker
from graphopt.target import CPU
from graphopt_passes.exact.opset_adapters import ADAPTERS, unchanged
from graphopt_passes.exact.raise_opset import RaiseOpset, _history, is_widened, raised
from tests.support import assert_same, compute, run_passes, serialized

GOALS = (13, 17, 18, 21)

FLOAT = onnx.TensorProto.FLOAT
X, ROWS = "float[2, 3, 4] x", "float[N, 3, 4] x"
IMAGE = "float[1, 2, 5, 6] x"


def model(opset: int, graph: str, functions: str = "", ir_version: int = 8) -> onnx.ModelProto:
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    text = f"<ir_version: {ir_version}, opset_import: [{imports}]> {graph}\n{functions}"
    return parser.parse_model(text)


def unary(opset: int, body: str, inputs: str = X, dtype: str = "float") -> onnx.ModelProto:
    """A model with one output, whose dims are inferred; where they cannot be, it has four."""
    proto = model(opset, f"g ({inputs}) => ({dtype}[] y) {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = onnx.shape_inference.infer_shapes(proto)
    if not found.graph.output[0].type.tensor_type.HasField("shape"):
        found.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(FLOAT, list("ABCD")))
    del found.graph.value_info[:]
    return found


CASES: dict[str, onnx.ModelProto] = {
    "ArgMax-11": unary(11, "y = ArgMax <axis = 2, keepdims = 0> (x)", dtype="int64"),
    "AveragePool-7": unary(7, "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (x)", IMAGE),
    "AveragePool-10": unary(
        10,
        "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],"
        " ceil_mode = 1, count_include_pad = 1> (x)",
        IMAGE,
    ),
    "AveragePool-11-ceil": unary(
        11, "y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)", IMAGE
    ),
    "BatchNormalization-7": unary(
        7,
        "y = BatchNormalization <spatial = 1, epsilon = 0.5> (x, s, s, s, v)",
        IMAGE + ", float[2] s, float[2] v",
    ),
    "BatchNormalization-9": unary(
        9, "y = BatchNormalization (x, s, s, s, v)", IMAGE + ", float[2] s, float[2] v"
    ),
    "Cast-9": unary(9, "y = Cast <to = 7> (x)", dtype="int64"),
    "Clip-7": unary(7, "y = Clip <min = -0.5, max = 0.25> (x)"),
    "Clip-7-max": unary(7, "y = Clip <max = 0.25> (x)"),
    "Clip-9-none": unary(9, "y = Clip (x)"),
    "Clip-10-half": unary(10, "y = Clip <min = -0.5, max = 0.25> (x)", "float16[2, 3, 4] x", "float16"),
    "DepthToSpace-7": unary(7, "y = DepthToSpace <blocksize = 2> (x)", "float[1, 8, 2, 3] x"),
    "DequantizeLinear-10": unary(
        10, "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)", X + ", float s, uint8 z"
    ),
    "Dropout-7": unary(7, "y = Dropout <ratio = 0.75> (x)"),
    "Dropout-10": unary(10, "y, m = Dropout <ratio = 0.25> (x)"),
    "Flatten-7": unary(7, "y = Flatten <axis = 0> (x)"),
    "GatherND-11": unary(11, "y = GatherND (x, i)", X + ", int64[2, 1] i"),
    "Gemm-7": unary(7, "y = Gemm <transB = 1> (x, w, s)", "float[2, 3] x, float[4, 3] w, float[4] s"),
    "Hardmax-11": unary(11, "y = Hardmax (x)"),
    "LogSoftmax-9": unary(9, "y = LogSoftmax <axis = 2> (x)"),
    "LSTM-7": unary(
        7, "y = LSTM <hidden_size = 2> (x, w, r)", "float[2, 3, 4] x, float[1, 8, 4] w, float[1, 8, 2] r"
    ),
    "MaxPool-7": unary(7, "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", IMAGE),
    "MaxPool-10-ceil": unary(
        10, "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)", IMAGE
    ),
    "Pad-7": unary(7, "y = Pad <pads = [0, 1, 0, 0, 2, 1], value = 1.5> (x)"),
    "Pad-10-reflect": unary(10, 'y = Pad <pads = [0, 1, 0, 0, 2, 1], mode = "reflect"> (x)'),
    "ReduceSum-11": unary(11, "y = ReduceSum <axes = [-1, 0], keepdims = 0> (x)"),
    "ReduceSum-9-all": unary(9, "y = ReduceSum (x)"),
    "ReduceMean-12": unary(12, "y = ReduceMean <axes = [1]> (x)"),
    "ReduceMean-7-all": unary(7, "y = ReduceMean (x)"),
    "Reshape-7": unary(7, "t = Constant <value = int64[2] {0, -1}> () y = Reshape (x, t)", ROWS),
    "Resize-10-enlarge": unary(
        10, "s = Constant <value = float[4] {1, 1, 2.5, 1.3}> () y = Resize (x, s)", IMAGE
    ),
    "Resize-10-shrink": unary(
        10, "s = Constant <value = float[4] {1, 1, 0.6, 0.7}> () y = Resize (x, s)", IMAGE
    ),
    "Resize-10-linear": unary(
        10, 's = Constant <value = float[4] {1, 1, 0.6, 1.7}> () y = Resize <mode = "linear"> (x, s)', IMAGE
    ),
    "RoiAlign-10": unary(
        10,
        "i = Constant <value = int64[1] {0}> () y = RoiAlign <output_height = 2, output_width = 2> (x, r, i)",
        IMAGE + ", float[1, 4] r",
    ),
    "Scatter-9": unary(9, "y = Scatter <axis = 1> (x, i, u)", X + ", int64[1, 2, 2] i, float[1, 2, 2] u"),
    "Shape-9": unary(9, "y = Shape (x)", ROWS, "int64"),
    "Slice-7": unary(7, "y = Slice <starts = [1, -3], ends = [2, 9], axes = [0, 2]> (x)"),
    "Slice-9-no-axes": unary(9, "y = Slice <starts = [0, 1], ends = [1, 3]> (x)"),
    "Softmax-7-last": unary(7, "y = Softmax <axis = 2> (x)"),
    "Softmax-11-coerced": unary(11, "y = Softmax (x)", ROWS),
    "Softmax-11-from-0": unary(11, "y = Softmax <axis = -3> (x)"),
    "Softmax-9-pooled": unary(9, "y = Softmax (x)", "float[2, 3, 1, 1] x"),
    "Split-11": unary(11, "a, y = Split <axis = 2, split = [1, 3]> (x)"),
    "Split-7-even": unary(7, "a, y = Split <axis = 2> (x)"),
    "Squeeze-11": unary(11, "y = Squeeze <axes = [1]> (x)", "float[2, 1, 4, 1] x"),
    "Squeeze-7-all": unary(7, "y = Squeeze (x)", "float[2, 1, 4, 1] x"),
    "TopK-7": model(
        7, f"g ({X}) => (float[2, 3, 2] y, int64[2, 3, 2] i) {{ y, i = TopK <axis = 2, k = 2> (x) }}"
    ),
    "TopK-10": unary(10, "k = Constant <value = int64[1] {2}> () y, i = TopK <axis = 1> (x, k)"),
    "Unsqueeze-11": unary(11, "y = Unsqueeze <axes = [0, -1]> (x)"),
    "Upsample-7": unary(7, "y = Upsample <scales = [1.0, 1.0, 2.0, 1.5]> (x)", IMAGE),
    "Upsample-9-linear": unary(
        9,
        's = Constant <value = float[4] {1, 1, 2, 3}> () y = Upsample <mode = "linear"> (x, s)',
        IMAGE,
    ),
    "Upsample-9-computed": unary(
        9,
        "h = Shape (x) a = Div (h, h) b = Add (a, a) s = Cast <to = 1> (b) y = Upsample (x, s)",
        IMAGE,
    ),
    "in-a-branch": model(
        11,
        f"g (bool c, {X}) => (float[4, 3] y) {{ y = If (c) <"
        "then_branch = t () => (float[4, 3] a)"
        " { r = ReduceSum <axes = [0], keepdims = 0> (x) a = Transpose (r) },"
        "else_branch = e () => (float[4, 3] b)"
        " { p, q = Split <axis = 0> (x) s = Squeeze <axes = [0]> (p) b = Transpose (s) }"
        "> }",
    ),
    "in-a-function": model(
        10,
        f"g ({X}) => (float[2, 3, 4] y) {{ y = local.f (x) }}",
        '<domain: "local", opset_import: ["" : 10]> f (a) => (b)'
        " { c = Unsqueeze <axes = [0]> (a) d = Softmax <axis = 3> (c) b = Squeeze <axes = [0]> (d) }",
    ),
}

REFUSED: dict[str, tuple[onnx.ModelProto, int, str]] = {
    "BatchNormalization-per-element": (
        unary(7, "y = BatchNormalization <spatial = 0> (x, s, s, s, s)", IMAGE + ", float[2, 5, 6] s"),
        13,
        "BatchNormalization making 'y': its statistics are per element (spatial=0)",
    ),
    "BatchNormalization-training": (
        model(
            9,
            f"g ({IMAGE}, float[2] s) => (float[1, 2, 5, 6] y, float[2] m)"
            " { y, m = BatchNormalization (x, s, s, s, s) }",
        ),
        14,
        "BatchNormalization making 'y': it returns statistics, as for training",
    ),
    "Clip-of-unknown-type": (
        model(9, "g (float[2] x) => (float[2] y) { a = org.Op (x) y = Clip <max = 1.0> (a) }"),
        13,
        "Clip making 'y': its type is not known",
    ),
    "Dropout-7-mask": (
        model(7, f"g ({X}) => (float[2, 3, 4] y, float[2, 3, 4] m) {{ y, m = Dropout (x) }}"),
        13,
        "Dropout making 'y': its mask had another type before opset 10",
    ),
    "Dropout-10-mask": (
        model(10, f"g ({X}) => (float[2, 3, 4] y, bool[2, 3, 4] m) {{ y, m = Dropout (x) }}"),
        13,
        "Dropout making 'y': its mask meant the opposite before opset 12",
    ),
    "Erf-of-integers": (
        model(9, "g (int32[2] x) => (int32[2] y) { y = Erf (x) }"),
        13,
        "Erf making 'y': it takes no integers any more",
    ),
    "Resize-both-ways": (
        unary(10, "s = Constant <value = float[4] {1, 1, 0.6, 1.7}> () y = Resize (x, s)", IMAGE),
        13,
        "Resize making 'y': it both enlarges and shrinks",
    ),
    "Resize-unknown": (
        unary(10, "y = Resize (x, s)", IMAGE + ", float[4] s"),
        13,
        "Resize making 'y': whether it enlarges or shrinks is not known",
    ),
    "Resize-gone": (
        unary(
            11,
            "s = Constant <value = float[4] {1, 1, 2, 2}> () r = Constant <value = float[0] {}> ()"
            ' y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, s)',
            IMAGE,
        ),
        13,
        "Resize making 'y': its mode tf_half_pixel_for_nn is gone since opset 13",
    ),
    "GroupNormalization": (
        unary(18, "y = GroupNormalization <num_groups = 1> (x, s, s)", IMAGE + ", float[1] s"),
        21,
        "GroupNormalization making 'y': what changed in opset 21 has no equal there that graphopt knows",
    ),
    "unknown-operator": (
        model(9, "g (float[2] x) => (float[2] y) { y = Affine (x) }"),
        13,
        "Affine making 'y': onnx knows no Affine of opset 9",
    ),
    "before-7": (
        unary(6, "y = Relu (x)"),
        13,
        "its opset is 6; before opset 7 operators broadcast by attributes",
    ),
    "parameter-of-a-function": (
        model(
            11,
            f"g ({X}) => (float[2, 3, 4] y) {{ y = local.f <lo = 0.5> (x) }}",
            '<domain: "local", opset_import: ["" : 10]> f <lo> (a) => (b)'
            " { b = Clip <min: float = @lo> (a) }",
        ),
        13,
        "Clip making 'b': 'min' of Clip making 'b' is a parameter of the function it stands in",
    ),
}


def feeds_of(proto: onnx.ModelProto, seed: int) -> dict[str, Any]:
    """Normal floats, some of them large; small indices; N is 2."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            made[value.name] = (10.0**seed * rng.standard_normal(shape)).astype(dtype)
        else:
            made[value.name] = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if "v" in made:
        made["v"] = np.abs(made["v"])
    if "z" in made:
        made["s"] = np.array(0.05, np.float32)
    return made


@pytest.mark.parametrize("to", GOALS)
@pytest.mark.parametrize("case", CASES)
def test_meaning_is_kept(case: str, to: int, worker: Worker) -> None:
    before = CASES[case]
    version = before.opset_import[0].version
    after, run = run_passes(before, RaiseOpset(to=to), worker=worker)
    assert [opset.version for opset in serialized(after).opset_import if opset.domain == ""] == [to]
    assert list(run.journal.notes) == [f"opset {version} of domain '' became {to}"]
    onnx.checker.check_model(serialized(after), full_check=True)
    for seed in range(3):
        # From opset 19 on ONNX Runtime's AveragePool adds in another order.
        assert_same(before, after, feeds_of(before, seed), rtol=1e-5)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_models_stay_as_they_are(case: str, worker: Worker) -> None:
    proto, to, reason = REFUSED[case]
    model = Model.of(proto)
    bytes_before = serialized(model).SerializeToString()
    run = Run(CPU, worker)
    assert raised(model, run, to) == reason
    assert serialized(model).SerializeToString() == bytes_before
    assert not run.journal.rewrites and not run.journal.notes


def test_one_node_that_cannot_follow_keeps_all_back(worker: Worker) -> None:
    proto = unary(10, "a = Squeeze <axes = [0]> (x) y = Resize (a, s)", "float[1, 1, 2, 5, 6] x, float[4] s")
    after, run = run_passes(proto, RaiseOpset(), worker=worker)
    assert serialized(after).opset_import[0].version == 10
    assert [node.op_type for node in after.ir.graph] == ["Squeeze", "Resize"]
    assert [refusal.reason for refusal in run.journal.refusals] == [
        "Resize making 'y': whether it enlarges or shrinks is not known"
    ]


def test_every_change_of_a_version_is_handled_or_known_not_to_be() -> None:
    """Widened in its schema, or in the table; what is neither is listed here, and what opset 25 brought."""
    missing = {
        (new.name, new.since_version)
        for old, new in itertools.chain(*map(itertools.pairwise, _history().values()))
        if 7 < new.since_version < 25 and (new.name, new.since_version) not in ADAPTERS
        if new.deprecated or not is_widened(old, new)
    }
    assert missing == {("Scan", 9), ("GroupNormalization", 21)}


def test_the_table_does_not_say_what_schemas_say() -> None:
    for old, new in itertools.chain(*map(itertools.pairwise, _history().values())):
        if ADAPTERS.get((new.name, new.since_version)) is unchanged:
            assert not is_widened(old, new), (new.name, new.since_version)


def test_a_schema_is_not_widened_by_other_defaults_or_fewer_types() -> None:
    def schema(name: str, version: int) -> OpSchema:
        return onnx.defs.get_schema(name, version, "")

    assert is_widened(schema("Relu", 6), schema("Relu", 14))
    assert is_widened(schema("Gemm", 9), schema("Gemm", 11))  # C became optional
    assert not is_widened(schema("Gemm", 11), schema("Gemm", 9))
    assert not is_widened(schema("Relu", 14), schema("Relu", 6))
    assert not is_widened(schema("Softmax", 11), schema("Softmax", 13))
    assert not is_widened(schema("Squeeze", 11), schema("Squeeze", 13))


def test_kept_nodes_keep_the_model_back_if_they_would_change(worker: Worker) -> None:
    proto = unary(11, "a = Relu (x) y = Squeeze <axes = [0]> (a)", "float[1, 2, 3] x")
    run_passes(proto, RaiseOpset(), worker=worker, keep="Relu")
    after, run = run_passes(proto, RaiseOpset(), worker=worker, keep="Squeeze")
    assert serialized(after).opset_import[0].version == 11
    [refusal] = run.journal.refusals
    assert "to be kept" in refusal.reason


def test_it_can_be_left_out(worker: Worker) -> None:
    proto = unary(11, "y = Relu (x)")
    after, _ = run_passes(proto, RaiseOpset(), worker=worker, journal=Journal(limit=0))
    assert serialized(after).opset_import[0].version == 11


def test_newer_models_stay(worker: Worker) -> None:
    proto = unary(17, "y = Relu (x)")
    model, run = Model.of(proto), Run(CPU, worker)
    assert raised(model, run, 13) is None
    assert model.ir.opset_imports[""] == 17
    assert not run.journal.rewrites


@pytest.mark.parametrize("to", [10, 1000])
def test_goals_out_of_range_are_refused(to: int, worker: Worker) -> None:
    reason = raised(Model.of(unary(9, "y = Relu (x)")), Run(CPU, worker), to)
    assert reason is None if to < 10 else reason is not None and f"not {to}" in reason


def test_other_domains_and_the_interface_stay(worker: Worker) -> None:
    text = "g (float[1, 2] x) => (float[2] y) { a = Squeeze <axes = [0]> (x) y = com.microsoft.Gelu (a) }"
    proto = model(11, text)
    proto.opset_import.add(domain="com.microsoft", version=1)
    after, _ = run_passes(proto, RaiseOpset(), worker=worker)
    said = notices(Interface.of(proto), Interface.of(after))
    assert said == ["opset 11 of domain '' became 13"]
    assert differences(Interface.of(proto), Interface.of(after)) == []
    assert_same(proto, after, {"x": np.ones((1, 2), np.float32)})


def test_lists_of_initializers_among_inputs_are_dropped_only_where_constants_come(worker: Worker) -> None:
    """IR 3: a new constant makes it IR 4, which is noted; without one the model stays IR 3."""
    bodies = {"y = Add (x, w)": 3, "a = Add (x, w) y = Unsqueeze <axes = [0]> (a)": 4}
    for body, version in bodies.items():
        dims = "1, 2" if version == 3 else "1, 1, 2"
        graph = f"g (float[1, 2] x, float[2] w = {{1, 2}}) => (float[{dims}] y) {{ {body} }}"
        proto = model(9, graph, ir_version=3)
        after, run = Model.of(proto), Run(CPU, worker)
        assert raised(after, run, 13) is None
        assert after.ir.ir_version == version
        assert any("IR version 3 became 4" in note for note in run.journal.notes) == (version == 4)
        assert_same(proto, after, {"x": np.ones((1, 2), np.float32)})


# How many models that come with onnx can be raised to 13 and to 21.
KINDS = {"node": (55, 400), "pytorch-converted": (70, 70), "pytorch-operator": (28, 28), "simple": (8, 8)}


def cases_of(kind: str) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """Name, model and inputs of the tests that come with onnx, where all inputs are arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = loader.load_model_tests(kind=kind)
    for case in found:
        if case.model is not None and case.data_sets:
            proto, given = case.model, case.data_sets[0][0]
        else:
            proto = onnx.load(Path(case.model_dir, "model.onnx"))
            files = sorted(Path(case.model_dir, "test_data_set_0").glob("input_*.pb"))
            given = [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
        names = [value.name for value in proto.graph.input]
        if all(isinstance(array, np.ndarray) for array in given):
            yield case.name, proto, dict(zip(names, given, strict=False))


@pytest.mark.parametrize("at", (0, 1), ids=("13", "21"))
@pytest.mark.parametrize("kind", KINDS)
def test_models_that_come_with_onnx(kind: str, at: int, worker: Worker) -> None:
    """Models of opset 6 are taken for 7, where the checker and ONNX Runtime take them so."""
    to, ran = (13, 21)[at], 0
    for name, before, feeds in cases_of(kind):
        opset = next((opset for opset in before.opset_import if opset.domain == ""), None)
        if opset is None or not 6 <= opset.version < to or "dropout" in name or "bernoulli" in name:
            continue
        opset.version = max(opset.version, 7)
        try:
            onnx.checker.check_model(before, full_check=True)
            compute(before, feeds)
        except Exception:  # ONNX Runtime has no kernel
            continue
        after, run = Model.of(before), Run(CPU, worker)
        reason = raised(after, run, to)
        if reason is not None:
            assert "Scan" in reason or "GroupNormalization" in reason, name
            continue
        onnx.checker.check_model(serialized(after), full_check=True)
        assert_same(before, after, feeds, rtol=1e-5)
        ran += 1
    assert ran >= KINDS[kind][at]
