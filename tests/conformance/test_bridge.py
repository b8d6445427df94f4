"""The bridge to onnx-graphsurgeon on every case of onnx.backend.test: what an edit leaves alone stays."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.surgeon.bridge import surgeon_pass
from graphopt.target import CPU
from tests.conformance.test_round_trip import node_models, stored_models


@surgeon_pass
def rename_nodes(graph: gs.Graph) -> None:
    """Name the nodes of the main graph after their place."""
    for index, node in enumerate(graph.nodes):
        node.name = f"renamed_{index}"


def check_renaming(label: str, proto: onnx.ModelProto) -> str:
    """Rename all nodes; the rest must stay. Returns why that was refused, or nothing."""
    model, run = Model.of(proto), Run(CPU, None)
    expected = model.skeleton()
    if not rename_nodes.apply(model, run):
        assert model.skeleton() == expected, label
        [refusal] = run.journal.refusals
        return refusal.reason
    for index, node in enumerate(expected.graph.node):
        node.name = f"renamed_{index}"
    actual = model.skeleton()
    assert actual.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True), (
        label
    )
    return ""


def test_node_cases():
    reasons = [check_renaming(name, proto) for name, proto in node_models()]
    refused = [reason for reason in reasons if reason]
    assert all(reason.startswith("graphsurgeon cannot hold") for reason in refused)
    assert len(refused) < 0.05 * len(reasons)


def test_light_models():
    for path in stored_models("light"):
        assert check_renaming(path.name, onnx.load(path)) == ""
