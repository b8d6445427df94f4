"""Models as converters of other libraries return them, built by hand, so that no such library is needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

import graphopt
from graphopt.interface import Interface, differences
from tests.support import compute, serialized


def pipeline() -> onnx.ModelProto:
    """Numbers are scaled, words one-hot encoded; a linear classifier, its probabilities in a ZipMap."""
    ml = {"domain": "ai.onnx.ml"}
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["numbers"], axis=1),
        helper.make_node("Scaler", ["numbers"], ["scaled"], offset=[1.0, 2.0], scale=[0.5, 2.0], **ml),
        helper.make_node("OneHotEncoder", ["c"], ["hot"], cats_strings=["x", "y"], **ml),
        helper.make_node("Reshape", ["hot", "flat"], ["words"]),
        helper.make_node("Cast", ["words"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["scaled", "same"], ["features"], axis=-1),
        helper.make_node(
            "LinearClassifier",
            ["features"],
            ["label", "scores"],
            classlabels_strings=["no", "yes"],
            coefficients=[-1.0, -0.5, 0.25, 1.0, 1.0, 0.5, -0.25, -1.0],
            intercepts=[0.1, -0.1],
            post_transform="SOFTMAX",
            **ml,
        ),
        helper.make_node("Normalizer", ["scores"], ["likely"], norm="L1", **ml),
        helper.make_node("ZipMap", ["likely"], ["probabilities"], classlabels_strings=["no", "yes"], **ml),
    ]
    maps = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    graph = helper.make_graph(
        nodes,
        "sklearn",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("c", TensorProto.STRING, [None, 1]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
            helper.make_value_info("probabilities", helper.make_sequence_type_proto(maps)),
        ],
        [helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


FEEDS = {
    "a": np.array([[0.5], [-3], [2]], np.float32),
    "b": np.array([[1], [4], [-2]], np.float32),
    "c": np.array([["x"], ["y"], ["z"]], object),
}


def test_a_classifier_with_maps_keeps_its_interface_and_its_answers():
    proto = pipeline()
    result = graphopt.optimize(proto, measure=False)
    assert result.report.evidence == "verified"
    assert result.report.rule_counts()["cast-to-same-type"] == 1
    after = serialized(result.model)
    assert differences(Interface.of(proto), Interface.of(after)) == []
    old, new = compute(proto, FEEDS), compute(after, FEEDS)
    assert [list(row) for row in new[1]] == [["no", "yes"]] * 3
    np.testing.assert_array_equal(new[0], old[0])
    assert new[1] == old[1]


def test_a_table_of_samples_with_words_is_data(tmp_path):
    np.savez(tmp_path / "table.npz", **FEEDS | {"c": FEEDS["c"].astype(str)})
    result = graphopt.optimize(pipeline(), data=str(tmp_path / "table.npz"), measure=False)
    assert result.report.evidence == "verified"


def test_what_torch_export_returns_is_optimized_and_left_as_it_was():
    program = SimpleNamespace(model=ir.from_proto(pipeline_of_floats()))
    result = graphopt.optimize(program, measure=False)
    assert [node.op_type for node in result.model.ir.graph] == ["Relu"]
    assert len(list(program.model.graph)) == 2


def pipeline_of_floats() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>'
        "g (float[batch,4] x) => (float[batch,4] y) { a = Dropout(x) y = Relu(a) }"
    )
