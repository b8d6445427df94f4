"""Verification: rounding passes, one wrong element does not, and without evidence nothing is verified."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.model import Model
from graphopt.proof import verify
from graphopt.proof.tolerance import Spread, judge
from graphopt.proof.verify import Verifier
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.samples.sampling import Samples
from graphopt.target import CPU, REFERENCE


def _info(name, elem_type, shape):
    return helper.make_tensor_value_info(name, elem_type, shape)


def _save(path, nodes, inputs, outputs, weights=None):
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def _mlp(path, middle="Relu", weight=None, bias=0.0):
    """y = f(x W) W' + bias with 16 columns, and the inner tensors h and a."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((8, 32)).astype(np.float32) if weight is None else weight
    weights = {
        "w": first,
        "v": rng.standard_normal((32, 16)).astype(np.float32),
        "b": np.broadcast_to(np.asarray(bias, np.float32), (16,)).copy(),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(middle, ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["y"]),
    ]
    return _save(path, nodes, [_info("x", 1, ["n", 8])], [_info("y", 1, ["n", 16])], weights)


def _unary(path, op, elem_type=1, **attributes):
    out = attributes.get("to", elem_type)
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    return _save(path, [node], [_info("x", elem_type, ["n", 4])], [_info("y", out, ["n", 4])])


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


def _verifier(worker, original, **options):
    return Verifier(worker, original, Samples.of(ir.load(original), **options), threads=1)


def test_the_same_computation_in_another_order_is_verified(worker, tmp_path):
    rng = np.random.default_rng(0)
    original = _mlp(tmp_path / "a.onnx", bias=rng.standard_normal(16))
    model = onnx.load(original)
    gemm = helper.make_node("Gemm", ["a", "v", "b"], ["y"])
    del model.graph.node[2:]
    model.graph.node.append(gemm)
    onnx.save(model, tmp_path / "b.onnx")
    verdict = _verifier(worker, original).check(tmp_path / "b.onnx")
    assert verdict.ok
    assert verdict.status == "verified"
    assert verdict.summary().startswith("verified: 8 synthetic samples (seed 0, ")


def test_a_wrong_weight_fails_and_the_first_diverging_tensor_is_found(worker, tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    original = _mlp(tmp_path / "a.onnx", weight=weight)
    weight[3, 5] *= 1.001
    candidate = _mlp(tmp_path / "b.onnx", weight=weight)
    verifier = _verifier(worker, original)
    verdict = verifier.check(candidate)
    assert (verdict.ok, verdict.status) == (False, "failed")
    assert "output 'y'" in verdict.reason
    assert verifier.first_divergence(candidate, verdict) == "h"
    assert verifier.first_divergence(original, verdict) is None


def test_a_candidate_that_does_not_run_fails(worker, tmp_path):
    original = _mlp(tmp_path / "a.onnx")
    candidate = _mlp(tmp_path / "b.onnx", weight=np.zeros((8, 31), np.float32))
    verdict = _verifier(worker, original).check(candidate)
    assert not verdict.ok
    assert "does not run" in verdict.reason


def test_a_candidate_that_kills_the_runtime_fails(worker, tmp_path, monkeypatch):
    original = _mlp(tmp_path / "a.onnx")
    verifier = _verifier(worker, original)
    assert verifier.runnable
    run = worker.run

    def killing(session, feeds):
        worker._child.kill()
        return run(session, feeds)

    monkeypatch.setattr(worker, "run", killing)
    verdict = verifier.check(original)
    assert not verdict.ok
    assert "ended its process" in verdict.reason
    monkeypatch.undo()
    assert verifier.check(original).ok


def test_a_changed_type_or_set_of_outputs_fails(worker, tmp_path):
    verifier = _verifier(worker, _unary(tmp_path / "a.onnx", "Neg"))
    assert "type float64" in verifier.check(_unary(tmp_path / "b.onnx", "Cast", to=11)).reason


def test_random_outputs_are_not_evidence(worker, tmp_path):
    path = _unary(tmp_path / "a.onnx", "RandomNormalLike")
    verdict = _verifier(worker, path).check(path)
    assert (verdict.ok, verdict.status) == (True, "not verified")
    assert "non-deterministic" in verdict.reason


def test_a_model_of_unknown_operators_is_structural_only(worker, tmp_path):
    path = _unary(tmp_path / "a.onnx", "Mystery", domain="nowhere")
    verifier = _verifier(worker, path)
    verdict = verifier.check(path)
    assert (verdict.ok, verdict.status, verifier.runnable) == (True, "structural only", False)
    assert "Mystery" in verdict.reason


def test_samples_on_which_the_original_fails_are_no_evidence(worker, tmp_path):
    goal = {"goal": np.array([7, 7])}
    node = helper.make_node("Reshape", ["x", "goal"], ["y"])
    path = _save(tmp_path / "a.onnx", [node], [_info("x", 1, [2, 3])], [_info("y", 1, None)], goal)
    verdict = _verifier(worker, path).check(path)
    assert (verdict.ok, verdict.status) == (True, "not verified")
    assert "cannot run the original" in verdict.reason


def test_nan_and_inf_are_results_like_others(worker, tmp_path):
    original = _unary(tmp_path / "a.onnx", "Log")
    verifier = _verifier(worker, original)
    assert verifier.check(original).status == "verified"
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])]
    io = [_info("x", 1, ["n", 4])], [_info("y", 1, ["n", 4])]
    verdict = verifier.check(_save(tmp_path / "b.onnx", nodes, *io))
    assert not verdict.ok
    assert "NaN or Inf" in verdict.reason


def test_the_users_data_is_named_as_evidence(worker, tmp_path):
    original = _mlp(tmp_path / "a.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((3, 8), np.float32))
    verdict = _verifier(worker, original, data=str(tmp_path / "d.npz")).check(original)
    assert verdict.summary().startswith(f"verified: 3 samples of {tmp_path / 'd.npz'}")


def test_the_workload_needs_a_model_that_runs(worker, tmp_path):
    verifier = _verifier(worker, _mlp(tmp_path / "a.onnx"))
    assert verifier.workload()["x"].shape == (1, 8)


def _quantized(path, offset=0.0):
    """y = x W + offset on int8 grids: optimized, it multiplies integers and rounds differently."""
    rng = np.random.default_rng(0)
    weights = {
        "s": np.float32(0.05),
        "t": np.float32(0.0071),
        "u": np.float32(0.0193),
        "z": np.int8(0),
        "w": rng.integers(-127, 128, (8, 16)).astype(np.int8),
        "b": np.full(16, offset, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xs"]),
        helper.make_node("DequantizeLinear", ["w", "t", "z"], ["ws"]),
        helper.make_node("MatMul", ["xs", "ws"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "u", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "u", "z"], ["d"]),
        helper.make_node("Add", ["d", "b"], ["y"]),
    ]
    return _save(path, nodes, [_info("x", 1, ["n", 8])], [_info("y", 1, ["n", 16])], weights)


def test_what_the_runtime_rounds_differently_when_optimizing_excuses_nothing_else(worker, tmp_path):
    original = _quantized(tmp_path / "a.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).standard_normal((64, 16, 8)).astype(np.float32))
    verifier = _verifier(worker, original, data=str(tmp_path / "d.npz"))
    plain = [one.outputs[REFERENCE]["y"].numpy() for one in verifier._references]
    optimized = [one.outputs[CPU]["y"].numpy() for one in verifier._references]
    assert max(np.abs(a - b).max() for a, b in zip(plain, optimized, strict=True)) > 0.019
    assert verifier.check(original).summary().count("weak evidence") == 0
    verdict = verifier.check(_quantized(tmp_path / "b.onnx", offset=0.01))
    assert not verdict.ok
    assert "run as written" in verdict.reason


def test_a_failure_says_how_the_model_was_run(worker, tmp_path):
    verdict = _verifier(worker, _mlp(tmp_path / "a.onnx")).check(_mlp(tmp_path / "b.onnx", bias=1.0))
    assert verdict.reason.startswith("output 'y' of sample 0, run as written: ")


def test_outputs_that_rounding_alone_changes_are_weak_evidence(worker, tmp_path):
    nodes = [helper.make_node("Mul", ["x", "k"], ["m"]), helper.make_node("Sin", ["m"], ["y"])]
    for factor, weak in ((1.0, False), (1e5, True)):
        path = tmp_path / f"{factor}.onnx"
        _save(path, nodes, [_info("x", 1, ["n", 4])], [_info("y", 1, ["n", 4])], {"k": np.float32(factor)})
        verdict = _verifier(worker, path).check(path)
        assert verdict.status == "verified"
        assert any("weak evidence for output 'y'" in note for note in verdict.notes) is weak


def test_without_floats_to_move_the_levels_tell_the_noise(worker, tmp_path):
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gather", ["e", "x"], ["g"]), helper.make_node("MatMul", ["g", "w"], ["m"])]
    nodes += [helper.make_node("Add", ["m", "b"], ["y"])]
    weights = {"e": rng.standard_normal((50, 64)), "w": rng.standard_normal((64, 32)), "b": np.ones(32)}
    io = [_info("x", 7, ["n"])], [_info("y", 1, ["n", 32])]
    floats = {name: array.astype(np.float32) for name, array in weights.items()}
    path = _save(tmp_path / "a.onnx", nodes, *io, floats)
    verifier = _verifier(worker, path)
    assert verifier.check(path).status == "verified"
    assert not any(one.moved for one in verifier._references)
    floats["w"][3, 5] *= 1.001
    assert not verifier.check(_save(tmp_path / "b.onnx", nodes, *io, floats)).ok


# --- the tolerance alone -----------------------------------------------------------------------------------


def _noisy(reference, seed=1):
    spread = Spread()
    noise = np.random.default_rng(seed).uniform(-1, 1, reference.shape) * 1e-7
    variant = (reference.astype(np.float64) * (1 + noise)).astype(np.float32)
    spread.observe(Tensor.of(reference), Tensor.of(variant))
    return spread


def _wrong(spread, reference, candidate):
    return judge(spread, Tensor.of(reference), Tensor.of(candidate)).wrong


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_rounding_passes_and_one_element_off_by_a_thousandth_does_not(scale):
    reference = (np.random.default_rng(0).standard_normal(10_000) * scale).astype(np.float32)
    spread = _noisy(reference)
    assert not _wrong(spread, reference, (reference * np.float32(1 + 2e-7)).astype(np.float32))
    candidate = reference.copy()
    candidate[1234] += 1e-3 * scale
    assert "1 of 10000 elements" in _wrong(spread, reference, candidate)


def test_a_huge_element_does_not_excuse_a_wrong_small_one():
    reference = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    reference[0] = 1e9
    candidate = reference.copy()
    candidate[500] += 0.01
    assert _wrong(_noisy(reference), reference, candidate)


def test_a_noisy_small_element_does_not_excuse_a_wrong_large_one():
    reference = np.random.default_rng(0).uniform(0, 1e-3, 1000).astype(np.float32)
    reference[0] = 400
    variant = reference.copy()
    variant[1:] += 1e-5
    spread = Spread()
    spread.observe(Tensor.of(reference), Tensor.of(variant))
    candidate = reference.copy()
    candidate[0] += 0.01
    assert _wrong(spread, reference, candidate)


def test_an_output_of_zeros_neither_hides_nor_fakes_a_failure():
    zeros = np.zeros(100, np.float32)
    assert not _wrong(Spread(), zeros, zeros + np.float32(1e-13))
    assert _wrong(Spread(), zeros, zeros + np.float32(1e-8))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (np.arange(5), np.array([0, 1, 2, 3, 5])),
        (np.array([True, False]), np.array([True, True])),
        (np.array(["a", "b"], object), np.array(["a", "c"], object)),
    ],
)
def test_integers_booleans_and_strings_are_equal(reference, candidate):
    assert not _wrong(Spread(), reference, reference.copy())
    assert "1 of" in _wrong(Spread(), reference, candidate)


def test_integers_may_flip_as_often_as_the_original_flips():
    reference = np.arange(10)
    variant, candidate, worse = reference.copy(), reference.copy(), reference.copy()
    variant[3] += 1
    candidate[5] -= 1
    worse[5] -= 2
    spread = Spread()
    spread.observe(Tensor.of(reference), Tensor.of(variant))
    assert not _wrong(spread, reference, candidate)
    assert _wrong(spread, reference, worse)
    candidate[6] -= 1
    assert _wrong(spread, reference, candidate)


def test_nan_and_inf_are_compared_by_position_and_sign():
    reference = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    assert not _wrong(Spread(), reference, reference.copy())
    for index, value in ((0, 0), (1, -np.inf), (2, np.nan), (3, np.inf)):
        candidate = reference.copy()
        candidate[index] = value
        assert "NaN or Inf" in _wrong(Spread(), reference, candidate)


def test_shapes_and_types_must_match():
    reference = np.zeros((2, 3), np.float32)
    assert "shape" in _wrong(Spread(), reference, reference.T)
    assert "type" in _wrong(Spread(), reference, reference.astype(np.float16))


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn", "int4"],
)
def test_low_precision_types_are_judged_by_their_own_resolution(dtype):
    reference = np.array([1, 2, 1, 4, 2, 1]).astype(getattr(ml_dtypes, dtype, dtype))
    candidate = reference.copy()
    assert not _wrong(Spread(), reference, candidate)
    candidate[3] = 1
    assert "1 of 6" in _wrong(Spread(), reference, candidate)


def test_slow_models_are_verified_on_as_many_samples_as_time_allows(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "MOST_SECONDS", 0.0)
    path = _mlp(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2, 8)).astype(np.float32)} for _ in range(20)]
    samples = Samples.of(Model.load(path), data)
    verdict = Verifier(worker, path, samples).check(path)
    assert verdict.status == "verified"
    assert verdict.evidence.startswith(f"{verify.FEWEST} samples")
    assert any("left out" in note for note in verdict.notes)
