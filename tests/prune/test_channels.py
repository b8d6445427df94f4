"""--channels: narrower layers that compute nearly the same, in one contract with all other pruning."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import graphopt
from graphopt.proof.evaluation import HeldOut
from graphopt_passes.prune.orders import Orders
from graphopt_passes.quantize import sensitivity
from tests.support import compute, serialized
from tools import models

from .conftest import FOLDER, Images


def redundant(width: int = 32) -> onnx.ModelProto:
    """Two layers with a Relu between them; half of the channels between them are copies of the others."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 24] x) => (float[N, 8] y)'
        " { a = Gemm (x, w, b)  r = Relu (a)  y = Gemm (r, v, c) }"
    )
    w, b = rng.standard_normal((24, width // 2)), rng.standard_normal(width // 2)
    weights = {
        "w": np.concatenate([w, 2 * w], axis=1),
        "b": np.concatenate([b, 2 * b]),
        "v": rng.standard_normal((width, 8)),
        "c": rng.standard_normal(8),
    }
    for name, data in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    return proto


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 24)).astype(np.float32)}


def test_what_goes_beyond_half_of_a_group_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What half of it does to the outputs does not tell."""
    seen: list[tuple[Orders, bool]] = []
    original = Orders.reach
    monkeypatch.setattr(
        Orders, "reach", lambda self, gone: seen.append((self, original(self, gone))) or seen[-1][1]
    )
    graphopt.optimize(redundant(), channels=0.75, data=samples(400, 1), measure=False)
    orders, reached = seen[-1]
    [(name, noises)] = orders.noises.items()
    assert reached and list(noises) == [16, 24], "half of 32 channels, and what was chosen"
    assert noises[24] > 1e3 * noises[16], "half of them are copies"
    assert [orders.noise(name, count) for count in (0, 16, 24)] == [0.0, *noises.values()]
    assert noises[16] < orders.noise(name, 20) < noises[24] < orders.noise(name, 28)


def test_channels_that_others_hold_as_well_go_without_loss() -> None:
    proto = redundant()
    result = graphopt.optimize(proto, channels=0.5, data=samples(400, 1), measure=False)
    after = serialized(result.model)
    onnx.checker.check_model(after, full_check=True)
    shapes = {one.name: tuple(one.dims) for one in after.graph.initializer}
    assert (24, 16) in shapes.values() and (16, 8) in shapes.values()
    (before,), (found,) = compute(proto, samples(9, 2)), compute(after, samples(9, 2))
    np.testing.assert_allclose(found, before, rtol=0.02, atol=0.02)
    assert [row.kept for row in result.report.pruned if row.kept] == ["16 of 32 channels"]


def test_without_fitting_the_same_channels_cost_more() -> None:
    costs = {}
    for refit in (True, False):
        found = graphopt.optimize(
            redundant(), channels=0.5, refit=refit, data=samples(400, 1), measure=False
        ).report
        assert found.accuracy is not None and found.accuracy.after.sqnr_db is not None
        costs[refit] = found.accuracy.after.sqnr_db
    assert costs[True] > costs[False] + 10


@pytest.mark.parametrize("select", ["obs", "lasso", "energy", "l2", "l1"])
def test_every_selection_removes_what_was_asked_for(select: str) -> None:
    result = graphopt.optimize(redundant(), channels=0.25, select=select, data=samples(200, 1), measure=False)
    assert [row.kept for row in result.report.pruned if row.kept] == ["24 of 32 channels"]


def test_a_trained_model_at_half_the_products_keeps_its_accuracy(images: Images) -> None:
    """With as many samples as users have: what few samples say of 2 % is noise."""
    every = {**images, "calibration_limit": None, "eval": str(FOLDER / "fashion_test.npz")}
    result = graphopt.optimize(models.path("fashion_cnn"), channels=0.5, objective="macs", **every)
    report = result.report
    assert report.accuracy is not None
    assert report.accuracy.after.metric is not None and report.accuracy.before.metric is not None
    assert report.accuracy.after.metric >= report.accuracy.before.metric - 1
    assert report.after is not None and report.before is not None
    assert report.after.parameters < 0.8 * report.before.parameters
    assert sum(row.macs_after or 0 for row in report.pruned) < 0.6 * sum(
        row.macs_before or 0 for row in report.pruned if row.kept
    )
    rows = {row.name: row for row in report.pruned}
    assert all(row.kept or row.reason for row in rows.values())
    assert "graph output" in rows["logits"].reason
    onnx.checker.check_model(serialized(result.model), full_check=True)


def test_without_data_the_weights_decide_and_it_is_said() -> None:
    report = graphopt.optimize(redundant(), channels=0.25, measure=False).report
    assert [row.kept for row in report.pruned if row.kept] == ["24 of 32 channels"]
    assert any("pruned without data" in note for note in report.notes)


def test_a_budget_bounds_what_goes() -> None:
    rng = np.random.default_rng(5)
    report = graphopt.optimize(
        redundant(),
        channels="auto",
        data={"x": rng.standard_normal((400, 24)).astype(np.float32)},
        measure=False,
    ).report
    assert report.accuracy is not None and report.accuracy.achieved
    assert report.accuracy.after.sqnr_db is not None and report.accuracy.after.sqnr_db >= 20
    kept = [row.kept for row in report.pruned if row.kept]
    assert kept and int(kept[0].split()[0]) <= 16


def test_layers_that_are_named_keep_their_channels() -> None:
    result = graphopt.optimize(redundant(), channels=0.5, keep=["Gemm"], measure=False)
    assert not [row for row in result.report.pruned if row.kept]
    assert any("--channels not achieved" in note for note in result.report.notes)


def test_what_is_added_behind_a_product_is_fitted_too() -> None:
    """A MatMul has its bias in an Add behind it."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5, 16] x) => (float[N, 5, 16] y)'
        " { a = MatMul (x, w)  c = Add (a, b)  h = Relu (c)  d = MatMul (h, v)  y = Add (d, e) }"
    )
    weights = {
        "w": rng.standard_normal((16, 64)) / 4,
        "b": rng.standard_normal(64) + 2,
        "v": rng.standard_normal((64, 16)) / 8,
        "e": rng.standard_normal(16),
    }
    for name, data in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    feeds = [{"x": rng.standard_normal((200, 5, 16)).astype(np.float32)} for _ in range(2)]
    result = graphopt.optimize(proto, channels=0.5, objective="macs", data=feeds[0], measure=False)
    (before,), (after,) = compute(proto, feeds[1]), compute(serialized(result.model), feeds[1])
    assert np.abs((after - before).mean(axis=(0, 1))).max() < 0.02
    assert np.square(after - before).sum() < 0.02 * np.square(before - before.mean(axis=(0, 1))).sum()


@pytest.mark.parametrize("how", [{"channels": 0.5, "objective": "macs"}, {"sparsity": 0.5}])
@pytest.mark.parametrize("bias", [30.0, 3000.0])
def test_inputs_that_hardly_vary_stop_nothing(bias: float, how: dict[str, object]) -> None:
    """A saturated Sigmoid, and values far from 0: what varies is near the rounding of products."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 16] x) => (float[N, 16] y)'
        " { a = Gemm (x, w, b)  h = "
        + ("Sigmoid" if bias < 100 else "Relu")
        + " (a)  d = Gemm (h, u, c)  k = Relu (d)  y = Gemm (k, v) }"
    )
    weights = {
        "w": rng.standard_normal((16, 64)) / 8,
        "b": bias * (1 + rng.random(64)),
        "u": rng.standard_normal((64, 64)) / 8,
        "c": rng.standard_normal(64),
        "v": rng.standard_normal((64, 16)) / 8,
    }
    for name, data in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    feeds = [{"x": rng.standard_normal((200, 16)).astype(np.float32)} for _ in range(2)]
    result = graphopt.optimize(proto, data=feeds[0], measure=False, **how)
    assert any(row.kept for row in result.report.pruned)
    (before,), (after,) = compute(proto, feeds[1]), compute(serialized(result.model), feeds[1])
    assert np.square(after - before).sum() < 0.3 * np.square(before).sum()


def test_a_product_that_adds_what_was_computed_is_not_fitted() -> None:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 16] x) => (float[N, 16] y)'
        " { a = Gemm (x, w)  h = Relu (a)  d = Gemm (h, u, x)  k = Relu (d)  y = Gemm (k, v, m) }"
    )
    weights = {"w": (16, 64), "u": (64, 16), "v": (16, 16), "m": (1, 16)}
    for name, shape in weights.items():
        data = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(data, name))
    data = {"x": rng.standard_normal((200, 16)).astype(np.float32)}
    result = graphopt.optimize(proto, channels=0.5, objective="macs", data=data, measure=False)
    onnx.checker.check_model(serialized(result.model), full_check=True)
    assert any("of 64 channels" in row.kept for row in result.report.pruned)


@pytest.mark.parametrize("objective", ["macs", "size"])
def test_a_model_that_lists_its_weights_as_inputs_costs_the_same(objective: str) -> None:
    """As models below IR 4 do."""
    rows = []
    for proto in (redundant(), old(redundant())):
        how = {"objective": objective, "channels": 0.3, "data": samples(200, 1), "measure": False}
        rows.append(graphopt.optimize(proto, **how).report.pruned)
    assert rows[0] == rows[1]
    (row,) = (row for row in rows[1] if row.kept)
    assert 0 < row.numbers_after < row.numbers_before and 0 < row.macs_after < row.macs_before


def old(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same below IR 4."""
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return proto


def test_integers_come_behind_channels_in_one_run(images: Images) -> None:
    report = graphopt.optimize(
        models.path("fashion_cnn"), channels=0.4, objective="macs", precision="int8", **images
    ).report
    assert any(row.kept for row in report.pruned)
    assert any(layer.precision == "int8" for layer in report.layers)
    assert report.accuracy is not None and report.accuracy.budget == "none"
    assert any(note.startswith("int8, beside the pruned model: ") for note in report.notes)


def test_two_shares_are_told_beside_the_original() -> None:
    proto, data = redundant(), samples(400, 1)
    report = graphopt.optimize(proto, channels=0.75, sparsity=0.5, data=data, measure=False).report
    assert report.accuracy is not None and report.accuracy.before.sqnr_db == np.inf
    alone = graphopt.optimize(proto, channels=0.75, data=data, measure=False).report
    assert alone.accuracy is not None and report.accuracy.after.sqnr_db is not None
    assert alone.accuracy.after.sqnr_db is not None
    assert report.accuracy.after.sqnr_db < alone.accuracy.after.sqnr_db + 1


@pytest.mark.parametrize("how", [{"channels": 0.5}, {"sparsity": 0.7}], ids=str)
def test_a_kept_layer_is_not_fitted(how: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 24] x) => (float[N, 4] z)'
        " { a = Gemm (x, w, b)  r = Relu (a)  y = Gemm (r, v, c)  s = Relu (y)  z = Gemm (s, u, d) }"
    )
    shapes = {"w": (24, 32), "b": (32,), "v": (32, 32), "c": (32,), "u": (32, 4), "d": (4,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(data, name) for name, data in weights.items())
    proto.graph.node[-1].name = "last"
    found = graphopt.optimize(proto, data=samples(200, 1), keep=["last"], measure=False, **how)
    last = serialized(found.model).graph.node[-1]
    held = {one.name: numpy_helper.to_array(one) for one in serialized(found.model).graph.initializer}
    assert found.report.pruned
    np.testing.assert_array_equal(held[last.input[1]], weights["u"])
    np.testing.assert_array_equal(held[last.input[2]], weights["d"])


@pytest.mark.parametrize("picked", [[0, 0, *range(1, 16)], [0, 0, *range(2, 16)], [0, 1, *range(15, 0, -1)]])
def test_channels_that_are_read_twice_go_with_both_readers(picked: list[int]) -> None:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 24] x) => (float[N, 4] z)'
        " { a = Gemm (x, w)  r = Relu (a)  p = Gather <axis = 1> (r, i)  z = MatMul (p, v) }"
    )
    weights = {"w": rng.standard_normal((24, 16)), "v": rng.standard_normal((len(picked), 4))}
    tensors = [numpy_helper.from_array(data.astype(np.float32), name) for name, data in weights.items()]
    proto.graph.initializer.extend([*tensors, numpy_helper.from_array(np.array(picked), "i")])
    found = graphopt.optimize(
        proto, channels=0.5, objective="macs", data=samples(400, 1), measure=False, passes=[]
    )
    after = serialized(found.model)
    onnx.checker.check_model(after, full_check=True)
    assert any(row.kept for row in found.report.pruned)
    assert found.report.accuracy is not None and found.report.accuracy.after.sqnr_db is not None
    assert found.report.accuracy.after.sqnr_db > 3


@pytest.mark.parametrize(("seconds", "expected"), [(120.0, [8]), (1e-9, [8, 1])])
def test_long_runs_judge_on_fewer_samples(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    """Rather than leave layers unmeasured."""
    asked: list[int] = []
    original = HeldOut.first
    monkeypatch.setattr(HeldOut, "first", lambda self, count: asked.append(count) or original(self, count))
    monkeypatch.setattr(sensitivity, "MOST_SECONDS", seconds)
    data = {"x": np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)}
    graphopt.optimize(redundant(), channels=0.5, data=data, measure=False)
    assert asked == expected
