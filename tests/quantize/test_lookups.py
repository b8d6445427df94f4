"""Tables that are looked up get 8 bits where that saves something, keeps the budget, and is no slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.precision import Task, Trial
from tests.quantize.test_static import comparison, floats, model, notes, quantize, run

EMBEDDING = """agraph (int64[N,5] x) => (float[N,5,8] y)
{ e = Gather(table, x)  h = MatMul(e, w)  r = Relu(h)  y = MatMul(r, v) }"""
TIED = """agraph (int64[N,5] x) => (float[N,5,64] y)
{ e = Gather(table, x)  h = MatMul(e, w)  t = Transpose(table)  y = MatMul(h, t) }"""


@pytest.fixture
def embedding() -> onnx.ModelProto:
    return model(EMBEDDING, table=floats(400, 32), w=floats(32, 32, seed=1), v=floats(32, 8, seed=2))


def indices(rows: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(7).integers(0, rows, (60, 5))}


def tables(result: Any) -> list[str]:
    return [node.op_type for node in result.model.ir.graph if "Gather" in node.op_type]


def test_an_embedding_is_a_quarter_as_large(embedding: onnx.ModelProto, tmp_path: Any) -> None:
    found = quantize(embedding, tmp_path / "y.onnx", data=indices(400))
    assert tables(found) == ["GatherBlockQuantized"]
    assert "tables that 1 nodes look up have 8 bits" in notes(found)
    [layer] = [layer for layer in found.report.layers if layer.op == "Gather"]
    assert (layer.precision, layer.reason) == ("int8", "")
    feeds = {"x": np.random.default_rng(8).integers(0, 400, (30, 5))}
    [old], [new] = run(embedding, feeds), run((tmp_path / "y.onnx").read_bytes(), feeds)
    assert 10 * np.log10(np.square(old).sum() / np.square(new - old).sum()) > 30
    assert (tmp_path / "y.onnx").stat().st_size < 0.4 * len(embedding.SerializeToString())


def test_a_table_that_saves_little_stays(embedding: onnx.ModelProto) -> None:
    small = model(EMBEDDING, table=floats(70, 32), w=floats(32, 4000, seed=1), v=floats(4000, 8, seed=2))
    assert tables(quantize(small, data=indices(70))) == ["Gather"]


def test_a_table_that_is_multiplied_with_too_stays() -> None:
    tied = model(TIED, table=floats(64, 32), w=floats(32, 32, seed=1))
    assert tables(quantize(tied, data=indices(64))) == ["Gather"]


def test_what_is_slower_stays(embedding: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers pay, but 8 bits in the table are a loss."""

    def compare(task: Task, before: Any, after: Any) -> Trial:
        content = onnx.load(after, load_external_data=False)
        looked_up = any(node.op_type == "GatherBlockQuantized" for node in content.graph.node)
        return Trial((comparison(0.5 if looked_up else 2.0),))

    monkeypatch.setattr(Task, "compare", compare)
    assert tables(quantize(embedding, data=indices(400), measure=True)) == ["Gather"]
