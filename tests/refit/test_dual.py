"""Layers of which rows are known: the same least squares as from sums, and pruning that uses it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.runtime.moments import Moments
from graphopt.runtime.pairs import Paired, PairedRows, Pairs, RowPairs
from graphopt_passes.refit import teacher
from graphopt_passes.refit.dual import fit_rows
from graphopt_passes.refit.kept import fit_kept
from graphopt_passes.refit.linear import Linear
from graphopt_passes.refit.solve import Fit

COLUMNS, CHANNELS = 60, 7
KEPT = np.arange(0, COLUMNS, 2)


def layer_of(w: np.ndarray, *, shifts: bool) -> Linear:
    """A layer without a graph."""
    bias = np.linspace(-1, 1, len(w), dtype=np.float32)
    fit = Fit(w[None].astype(np.float64), bias[None].astype(np.float64))
    facts = {"can_shift": shifts, "columns": COLUMNS, "channels": len(w), "fit": lambda: fit}
    return cast(Linear, SimpleNamespace(rows=lambda: w, bias=lambda: bias, **facts))


def drawn(arrays: int, seed: int = 0) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """A weight, and pairs of arrays: inputs that are not centred, outputs that no weight gives exactly."""
    rng = np.random.default_rng(seed)
    w, mixing = rng.standard_normal((CHANNELS, COLUMNS)), rng.standard_normal((COLUMNS, COLUMNS)) / 8
    xs = [rng.standard_normal((4, COLUMNS)) @ mixing + rng.random(COLUMNS) for _ in range(arrays)]
    ys = [x @ w.T + 0.1 * np.tanh(x @ rng.standard_normal((COLUMNS, CHANNELS))) for x in xs]
    pairs = [(x.astype(np.float32), y.astype(np.float32)) for x, y in zip(xs, ys, strict=True)]
    return w.astype(np.float32), pairs


def gathered(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[RowPairs, Pairs]:
    """As rows and as sums; every fourth array judges."""
    rows = PairedRows(Moments(COLUMNS), CHANNELS, -1, 4, 10**4).start()
    sums = Paired(Moments(COLUMNS, rows=10**4), CHANNELS, -1, 4).start()
    for x, y in pairs:
        rows.add(x, y)
        sums.add(x, y)
    return rows, sums


@pytest.mark.parametrize("kept", [None, KEPT])
@pytest.mark.parametrize("shifts", [True, False])
@pytest.mark.parametrize("arrays", [8, 80])  # fewer rows than columns, and more
def test_the_fit_is_that_of_the_sums(arrays: int, shifts: bool, kept: np.ndarray | None) -> None:
    w, pairs = drawn(arrays)
    layer, (rows, sums) = layer_of(w, shifts=shifts), gathered(pairs)
    found = fit_rows(layer, rows, np.arange(COLUMNS) if kept is None else kept)
    expected = fit_kept(layer, sums, kept)
    assert np.abs(expected.rows - w).max() > 0.01  # it was fitted
    np.testing.assert_allclose(found.rows, expected.rows, atol=4e-5)
    np.testing.assert_allclose(found.bias, expected.bias, atol=4e-5)


@pytest.mark.parametrize("arrays", [0, 1, 3])
def test_few_rows_change_little_and_nothing_fails(arrays: int) -> None:
    w, pairs = drawn(arrays)
    found = fit_rows(layer_of(w, shifts=True), gathered(pairs)[0], KEPT)
    assert np.isfinite(found.rows).all() and np.isfinite(found.bias).all()
    assert not np.delete(found.rows[0], KEPT, axis=1).any()
    if not arrays:
        np.testing.assert_array_equal(found.rows[0][:, KEPT], w[:, KEPT])


def test_inputs_of_zeros_leave_the_weight() -> None:
    w, pairs = drawn(8)
    rows, _ = gathered([(np.zeros_like(x), y) for x, y in pairs])
    found = fit_rows(layer_of(w, shifts=True), rows, np.arange(COLUMNS))
    np.testing.assert_array_equal(found.rows[0], w)


def flattened() -> onnx.ModelProto:
    """A Conv whose channels a wide Gemm reads behind a Flatten; half are nearly copies of others."""
    rng = np.random.default_rng(3)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 6, 6] x) => (float[N, 5] y)'
        " { a = Conv (x, w)  r = Relu (a)  f = Flatten (r)  y = Gemm (f, v, c) }"
    )
    half = rng.standard_normal((8, 3, 3, 3))
    near = half + 0.2 * rng.standard_normal(half.shape)
    weights = {
        "w": np.concatenate([half, near]),
        "v": rng.standard_normal((256, 5)),
        "c": rng.standard_normal(5),
    }
    for name, data in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    return proto


@pytest.mark.parametrize("select", ["obs", "energy", "lasso"])
def test_channels_that_a_wide_layer_reads_are_chosen_and_made_up_for(
    select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "MOST_COLUMNS", 100)
    data = {"x": np.random.default_rng(0).standard_normal((600, 3, 6, 6)).astype(np.float32)}
    how = {"channels": 0.5, "objective": "macs", "data": data, "select": select, "measure": False}
    found = {}
    for refit in (True, False):
        accuracy = graphopt.optimize(flattened(), refit=refit, **how).report.accuracy
        assert accuracy is not None and accuracy.after.sqnr_db is not None
        found[refit] = accuracy.after.sqnr_db
    assert found[True] > found[False] + 3
