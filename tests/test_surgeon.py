"""The bridge to onnx-graphsurgeon: what an edit leaves alone comes back exactly, or the edit is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.journal import Journal
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.storage.weights import MappedTensor
from graphopt.surgeon.bridge import SurgeonPass, surgeon_pass
from graphopt.target import CPU

FLOAT = TensorProto.FLOAT


class DropRelu(SurgeonPass):
    """Take every Relu out of the main graph."""

    name = "drop-relu"

    def edit(self, graph: gs.Graph) -> None:
        for node in [node for node in graph.nodes if node.op == "Relu"]:
            for user in list(node.outputs[0].outputs):
                user.inputs[user.inputs.index(node.outputs[0])] = node.inputs[0]
            node.outputs.clear()


class Untouched(SurgeonPass):
    """Do nothing."""

    name = "untouched"

    def edit(self, graph: gs.Graph) -> None:
        return None


def run_for(**fields) -> Run:
    return Run(CPU, None, **fields)


def model_of(nodes, inputs, outputs, initializers=(), opset=21, **fields) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "main", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **fields)
    onnx.checker.check_model(model)
    return model


def tensor_info(name, shape=(2, "n"), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def relu_chain(**fields) -> onnx.ModelProto:
    """x → Relu → Mul(w) → Neg → y, where everything that graphsurgeon loses is set."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Mul", ["r", "w"], ["m"]),
        helper.make_node("Neg", ["m"], ["y"], name="neg", doc_string="kept"),
    ]
    for node in nodes:
        node.metadata_props.add(key="from", value=node.op_type)
    weight = numpy_helper.from_array(np.float32([2.0]), "w")
    spare = numpy_helper.from_array(np.float32([3.0]), "unused")
    model = model_of(nodes, [tensor_info("x")], [tensor_info("y")], [weight, spare], **fields)
    model.domain, model.model_version, model.doc_string = "a.b", 7, "a model"
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.metadata_props.add(key="exporter", value="7")
    model.graph.input[0].doc_string = "an image"
    model.graph.value_info.add(name="m", doc_string="scaled").type.CopyFrom(model.graph.output[0].type)
    model.graph.value_info.add(name="r").type.CopyFrom(model.graph.output[0].type)
    model.graph.quantization_annotation.add(tensor_name="m").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    return model


def apply(step: SurgeonPass, proto: onnx.ModelProto, **fields) -> tuple[onnx.ModelProto, Journal, bool]:
    model, run = Model.of(proto), run_for(**fields)
    changed = step.apply(model, run)
    return model.skeleton(), run.journal, changed


def test_an_edit_keeps_everything_it_does_not_touch():
    proto = relu_chain()
    edited, journal, changed = apply(DropRelu(), proto)
    assert changed
    assert [rewrite.rule for rewrite in journal.rewrites] == ["drop-relu"]
    expected = Model.of(proto).skeleton()
    del expected.graph.node[0]
    expected.graph.node[0].input[0] = "x"
    del expected.graph.value_info[[v.name for v in expected.graph.value_info].index("r")]
    assert edited == expected


def test_an_edit_that_changes_nothing_says_so():
    proto = relu_chain()
    edited, journal, changed = apply(Untouched(), proto)
    assert not changed
    assert not journal.rewrites
    assert edited == Model.of(proto).skeleton()


def test_an_edit_is_idempotent_in_a_pipeline():
    model = Model.of(relu_chain())
    run = run_for()
    Pipeline([DropRelu()])(model, run)
    assert len(run.journal.rewrites) == 1


def test_bisection_can_leave_an_edit_out():
    proto = relu_chain()
    edited, _, changed = apply(DropRelu(), proto, journal=Journal(limit=0))
    assert not changed
    assert edited == Model.of(proto).skeleton()


def test_keep_protects_nodes():
    _, journal, changed = apply(DropRelu(), relu_chain(), keep=frozenset({"relu"}))
    assert not changed
    [refusal] = journal.refusals
    assert "--keep" in refusal.reason
    assert apply(DropRelu(), relu_chain(), keep=frozenset({"neg"}))[2]


def test_a_function_becomes_a_pass():
    @surgeon_pass
    def rename_weights(graph: gs.Graph) -> None:
        """Call w by another name."""
        graph.tensors()["w"].name = "weight"

    edited, _, changed = apply(rename_weights, relu_chain())
    assert rename_weights.name == "rename-weights"
    assert changed
    assert "weight" in edited.graph.node[1].input
    assert edited.graph.node[1].metadata_props[0].value == "Mul"


def test_large_weights_stay_in_their_file(tmp_path):
    weight = np.arange(4096, dtype=np.float32)
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "w"], ["y"])]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight, "value"))
    proto = model_of(
        [constant, *nodes, helper.make_node("Add", ["x", "c"], ["z"])],
        [tensor_info("x", (4096,))],
        [tensor_info("y", (4096,)), tensor_info("z", (4096,))],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    before = model.ir.graph.initializers["w"].const_value
    assert DropRelu().apply(model, run_for())
    assert model.ir.graph.initializers["w"].const_value is before
    constant = next(node for node in model.ir.graph if node.op_type == "Constant")
    assert isinstance(constant.attributes["value"].value, MappedTensor)
    model.save(tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(saved.graph.initializer[0]), weight)


def test_an_edit_reads_and_writes_large_weights(tmp_path):
    class Double(SurgeonPass):
        name = "double"

        def edit(self, graph):
            graph.tensors()["w"].values = graph.tensors()["w"].values * 2

    weight = np.arange(4096, dtype=np.float32)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    shape = (4096,)
    proto = model_of(
        [node], [tensor_info("x", shape)], [tensor_info("y", shape)], [numpy_helper.from_array(weight, "w")]
    )
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.load(tmp_path / "m.onnx")
    assert Double().apply(model, run_for())
    np.testing.assert_array_equal(model.ir.graph.initializers["w"].const_value.numpy(), weight * 2)


def test_an_overridable_initializer_is_an_input_to_the_edit():
    seen = []

    class Look(DropRelu):
        def edit(self, graph):
            seen.append(type(graph.tensors()["w"]))
            super().edit(graph)

    proto = relu_chain()
    proto.graph.input.append(tensor_info("w", (1,)))
    edited, _, changed = apply(Look(), proto)
    assert changed
    assert seen == [gs.Variable]
    assert [value.name for value in edited.graph.input] == ["x", "w"]
    assert "w" in [tensor.name for tensor in edited.graph.initializer]


def test_an_ir3_model_keeps_its_version():
    proto = relu_chain()
    proto.ir_version = 3
    proto.graph.input.extend([tensor_info("w", (1,)), tensor_info("unused", (1,))])
    model = Model.of(proto)
    Pipeline([DropRelu()])(model, run_for())
    assert model.ir.ir_version == 3
    assert [value.name for value in model.ir.graph.inputs] == ["x", "w", "unused"]
    assert [node.op_type for node in model.ir.graph] == ["Mul", "Neg"]


def branches(*, local: bool = False) -> onnx.ModelProto:
    """An If whose branches both capture the weight w, which no node of the main graph uses, after a Relu."""
    inits = [numpy_helper.from_array(np.float32([5.0]), "inner")] if local else []
    used = "inner" if local else "w"

    def branch(op, name):
        node = helper.make_node(op, ["r", used], [name])
        info = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([node], f"{op}-branch", [], [info], inits, doc_string="a branch")

    nodes = [
        helper.make_node("Relu", ["x"], ["r"], doc_string="to go"),
        helper.make_node("If", ["c"], ["i"], then_branch=branch("Add", "p"), else_branch=branch("Sub", "q")),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Neg", ["j"], ["y"]),
    ]
    inputs = [tensor_info("x"), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    weight = numpy_helper.from_array(np.float32([2.0]), "w")
    return model_of(nodes, inputs, [tensor_info("y")], [weight])


@pytest.mark.parametrize("local", [False, True])
def test_captured_weights_are_not_copied_into_branches(local):
    class DropLastRelu(SurgeonPass):
        name = "drop-last-relu"

        def edit(self, graph):
            relu = graph.nodes[2]
            graph.nodes[3].inputs = [relu.inputs[0]]
            relu.outputs.clear()

    proto = branches(local=local)
    edited, _, changed = apply(DropLastRelu(), proto)
    assert changed
    assert edited.graph.node[1] == proto.graph.node[1]
    assert [tensor.name for tensor in edited.graph.initializer] == ["w"]


def test_an_edit_inside_a_branch_keeps_the_rest_of_it():
    class SubToAdd(SurgeonPass):
        name = "sub-to-add"

        def edit(self, graph):
            for inner in graph.subgraphs():
                for node in inner.nodes:
                    node.op = "Add"

    proto = branches()
    edited, _, changed = apply(SubToAdd(), proto)
    assert changed
    graphs = {attribute.name: attribute.g for attribute in edited.graph.node[1].attribute}
    assert graphs["else_branch"].node[0].op_type == "Add"
    assert graphs["else_branch"].doc_string == "a branch"
    assert not graphs["else_branch"].initializer
    assert [tensor.name for tensor in edited.graph.initializer] == ["w"]


def test_functions_keep_what_graphsurgeon_does_not_know():
    proto = relu_chain()
    body = helper.make_node("Tanh", ["a"], ["b"], doc_string="inside")
    function = helper.make_function("f.g", "Squash", ["a"], ["b"], [body], [helper.make_opsetid("", 21)])
    function.metadata_props.add(key="k", value="v")
    proto.functions.append(function)
    proto.opset_import.add(domain="f.g", version=1)
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "Squash", "f.g"
    edited, _, changed = apply(DropRelu(), proto)
    assert changed
    expected = Model.of(proto).skeleton()
    assert edited.functions == expected.functions
    assert edited.opset_import == expected.opset_import
    proto.functions[0].overload = proto.graph.node[2].overload = "fast"
    assert "overload" in refusal_of(DropRelu(), proto)


def refusal_of(step: SurgeonPass, proto: onnx.ModelProto) -> str:
    """The reason for which a pass refuses a model, which stays as it is."""
    edited, journal, changed = apply(step, proto)
    assert not changed
    assert edited == Model.of(proto).skeleton()
    [refusal] = journal.refusals
    assert refusal.rule == step.name
    return refusal.reason


def optional_model() -> onnx.ModelProto:
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    node = helper.make_node("OptionalHasElement", ["o"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.BOOL, [])
    optional = helper.make_value_info("o", helper.make_optional_type_proto(tensor))
    return model_of([node], [optional], [output])


def empty_list_model() -> onnx.ModelProto:
    proto = relu_chain()
    proto.graph.node[0].attribute.add(name="nothing", type=onnx.AttributeProto.INTS)
    return proto


def odd_string_model() -> onnx.ModelProto:
    proto = relu_chain()
    proto.graph.node[0].attribute.add(name="text", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    return proto


@pytest.mark.parametrize("make", [optional_model, empty_list_model, odd_string_model])
def test_what_graphsurgeon_cannot_import_is_refused(make):
    assert "cannot hold" in refusal_of(DropRelu(), make())


def test_sequences_keep_their_shapes():
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, [2, "n"])
    nodes = [
        helper.make_node("SequenceAt", ["s", "i"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    index = numpy_helper.from_array(np.int64(0), "i")
    proto = model_of(nodes, [sequence], [tensor_info("y")], [index])
    edited, _, changed = apply(DropRelu(), proto)
    assert changed
    assert edited.graph.input[0] == sequence


def test_sparse_initializers_stay_sparse():
    proto = relu_chain()
    values = helper.make_tensor("w", FLOAT, [1], [2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [1], [0]), [1])
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(sparse)
    edited, _, changed = apply(DropRelu(), proto)
    assert changed
    assert edited.graph.sparse_initializer[0].dims == [1]
    assert len(edited.graph.sparse_initializer) == 1
    assert "sparse" in refusal_of(Touch(), proto)


def test_changed_interfaces_are_refused():
    class Drop(SurgeonPass):
        name = "drop"

        def edit(self, graph):
            graph.inputs.clear()

    class Rename(SurgeonPass):
        name = "rename"

        def edit(self, graph):
            graph.outputs[0].name = "other"

    assert "inputs, beginning with 'x'" in refusal_of(Drop(), relu_chain())
    assert "outputs, beginning with 'y'" in refusal_of(Rename(), relu_chain())


def test_invalid_edits_are_refused():
    class Cycle(SurgeonPass):
        name = "cycle"

        def edit(self, graph):
            graph.nodes[0].inputs = [graph.nodes[1].outputs[0]]

    assert "cycle" in refusal_of(Cycle(), relu_chain())


class Touch(SurgeonPass):
    """Read every constant, as many edits do in passing, and rename one node."""

    name = "touch"

    def edit(self, graph: gs.Graph) -> None:
        graph.nodes[0].name = "renamed"
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                _ = tensor.values


REFUSED = {"STRING", "INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2"} | {
    "FLOAT8E4M3FNUZ"
}


@pytest.mark.parametrize("kind", [name for name, number in TensorProto.DataType.items() if number])
@pytest.mark.parametrize("elements", [6, 8192], ids=["small", "large"])
def test_constants_of_every_type_come_back_as_they_were_or_the_edit_is_refused(kind, elements):
    dtype = ir.DataType[kind]
    rng = np.random.default_rng(0)
    if dtype == ir.DataType.STRING:
        tensor = helper.make_tensor("w", TensorProto.STRING, [elements], [b"\xff"] * elements)
    else:
        data = rng.integers(0, 2, -(-elements * dtype.bitwidth // 8), dtype=np.uint8).tobytes()
        tensor = helper.make_tensor("w", dtype.value, [elements], data, raw=True)
    info = helper.make_tensor_value_info("y", dtype.value, [elements])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"], name="n")], "g", [], [info], [tensor]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model, run = Model.of(proto), run_for()
    before = model.ir.graph.initializers["w"].const_value
    changed = Touch().apply(model, run)
    after = model.ir.graph.initializers["w"].const_value
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    if dtype != ir.DataType.STRING:
        assert after.tobytes() == before.tobytes()
    assert changed or "cannot" in next(iter(run.journal.refusals)).reason
    assert changed == (kind not in REFUSED)


def test_an_edit_that_breaks_parity_is_left_out_and_named():
    @surgeon_pass
    def mul_to_add(graph: gs.Graph) -> None:
        """Make Mul an Add, which is wrong."""
        for node in graph.nodes:
            if node.op == "Mul":
                node.op = "Add"

    proto = relu_chain()
    del proto.graph.quantization_annotation[:]
    result = graphopt.optimize(proto, passes=[mul_to_add, DropRelu()], measure=False, seed=1)
    assert [item.rewrite.rule for item in result.report.left_out] == ["mul-to-add", "drop-relu"]
    assert result.report.evidence == "verified"
    assert [node.op_type for node in result.model.ir.graph] == ["Relu", "Mul", "Neg"]
