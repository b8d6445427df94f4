"""Model: everything that a model holds survives load and save; weights are mapped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, parser

from graphopt import model as model_module
from graphopt.errors import InvalidModelError, UnsupportedModelError, UsageError
from graphopt.model import Model
from graphopt.storage import layout
from graphopt.storage.weights import MappedTensor, digest
from tests.conformance.canonical import canonical
from tools.make_decoder import Decoder, write_decoder

FLOAT = TensorProto.FLOAT


def everything() -> onnx.ModelProto:
    """A model with something in every field that a passing reader may lose."""
    model = parser.parse_model(
        """
        <ir_version: 11, opset_import: ["" : 24, "local" : 1, "custom" : 3], producer_name: "p",
         producer_version: "1", domain: "org", model_version: 7, doc_string: "doc",
         metadata_props: ["z": "1", "a": "2"]>
        main (float[N, 4] x, float[4] bias = {1, 2, 3, 4}, bool c, float unused)
            => (float[N, 4] y, float[N, M] x, float[2] fixed, float[N, 4] branch, float[N, 4] y)
        <float[2] fixed = {1, 2}, float[1] idle = {9}, float[N, 4] s>
        {
            s = Add(x, bias)
            y = local.f<k = 2>(s)
            branch = If(c) <
                then_branch = t () => (float[N, 4] b) { inner = Add(s, bias)  b = Relu(inner) },
                else_branch = e () => (b) { inner = Sub(s, bias)  b = Neg(inner) }
            >
            [named] u, v = custom.Op<text = "t", none: ints = [], list = [1, 2], f = 0.5>(x, , bias)
        }
        <domain: "local", opset_import: ["" : 24], doc_string: "function doc">
        f <k, d: float = 2.0> (a) => (b) { m = Mul(a, a)  b = Relu(m) }
        """
    )
    graph = model.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="g", value="1")
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="n", value="1")
    graph.node[3].attribute.add(name="bytes", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    graph.node[3].attribute.add(name="byte_list", type=onnx.AttributeProto.STRINGS, strings=[b"\xff", b"a"])
    graph.input[0].doc_string = "input doc"
    graph.input[0].metadata_props.add(key="i", value="1")
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.output[1].doc_string = "the input again"
    graph.value_info.append(helper.make_tensor_value_info("branch", FLOAT, ["N", "four"]))
    for name in ("s", "fixed", "nowhere"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="fixed")
    add_types(graph)
    add_attributes(graph)
    add_dtypes(graph)
    add_sparse(graph)
    add_devices(model)
    function = model.functions.add()
    function.CopyFrom(model.functions[0])
    function.overload = "other"
    power = function.node[0].attribute.add(name="power", type=onnx.AttributeProto.INT)
    power.ref_attr_name = "k"
    function.value_info.append(helper.make_tensor_value_info("m", FLOAT, ["N", 4]))
    function.metadata_props.add(key="f", value="1")
    return model


def add_types(graph: onnx.GraphProto) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, ["K", 3])
    sequence = helper.make_sequence_type_proto(tensor)
    of_map = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, None))
    types = {
        "sequence": sequence,
        "optional": helper.make_optional_type_proto(sequence),
        "map": of_map,
        "maps": helper.make_sequence_type_proto(of_map),
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, [3, "S"]),
        "scalar": helper.make_tensor_type_proto(FLOAT, []),
        "anything": helper.make_tensor_type_proto(FLOAT, None),
        "opaque": onnx.TypeProto(opaque_type=onnx.TypeProto.Opaque(domain="d", name="n")),
    }
    for name, type_proto in types.items():
        graph.input.append(helper.make_value_info(f"{name}_input", type_proto))
        node = graph.node.add(op_type="Typed", domain="custom", input=[f"{name}_input"])
        node.output.append(f"{name}_value")
        node.attribute.add(name="tp", type=onnx.AttributeProto.TYPE_PROTO, tp=type_proto)
        graph.value_info.append(helper.make_value_info(f"{name}_value", type_proto))


def add_attributes(graph: onnx.GraphProto) -> None:
    """An attribute of every type, and one that refers to a function's."""
    tensor = helper.make_tensor("t", FLOAT, [1], [1])
    sparse = helper.make_sparse_tensor(tensor, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1])
    body = parser.parse_graph("g () => (float r) { r = Neg(x) }")
    kind = onnx.AttributeProto
    node = graph.node.add(op_type="Everything", domain="custom", overload="o", output=["everything"])
    node.attribute.add(name="floats", type=kind.FLOATS, floats=[0.5, np.nan], doc_string="attribute doc")
    node.attribute.add(name="t", type=kind.TENSOR, t=tensor)
    node.attribute.add(name="tensors", type=kind.TENSORS, tensors=[tensor, tensor])
    node.attribute.add(name="graphs", type=kind.GRAPHS, graphs=[body, body])
    node.attribute.add(name="sparse_tensors", type=kind.SPARSE_TENSORS, sparse_tensors=[sparse])
    types = [helper.make_tensor_type_proto(FLOAT, [1]), helper.make_tensor_type_proto(FLOAT, None)]
    node.attribute.add(name="type_protos", type=kind.TYPE_PROTOS, type_protos=types)
    node.attribute.add(name="empty", type=kind.TENSORS)


def add_dtypes(graph: onnx.GraphProto) -> None:
    for elem_type in TensorProto.DataType.values():
        name = TensorProto.DataType.Name(elem_type).lower()
        if name == "undefined":
            continue
        if name == "string":
            graph.initializer.append(helper.make_tensor("w_string", elem_type, [2], [b"a", b"\xff"]))
            continue
        bits = ir.DataType(elem_type).bitwidth
        for count in (
            8,
            65_536 // bits // 8 * 8,
        ):  # below and above the size from which weights stay in the file
            data = (np.arange(count * bits // 8) % 2).astype(np.uint8).tobytes()
            graph.initializer.add(
                name=f"w_{name}_{count}", data_type=elem_type, dims=[count], raw_data=data, doc_string="w"
            ).metadata_props.add(key="k", value="v")
    for elem_type in (TensorProto.FLOAT16, TensorProto.INT32, TensorProto.DOUBLE, TensorProto.UINT64):
        typed = helper.make_tensor(f"w_typed_{elem_type}", elem_type, [2], [1, 2])
        graph.initializer.append(typed)
    typed = helper.make_tensor("w_typed", FLOAT, [3], [1, 2, np.nan])
    graph.initializer.extend([typed, helper.make_tensor("w_empty", FLOAT, [0, 3], [])])
    graph.value_info.append(helper.make_tensor_value_info("w_typed", FLOAT, [3]))


def add_sparse(graph: onnx.GraphProto) -> None:
    values = helper.make_tensor("w_sparse", FLOAT, [3], [1, 2, 3])
    indices = helper.make_tensor("w_sparse_indices", TensorProto.INT64, [3], [0, 4, 11])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
    node = graph.node.add(op_type="Constant", output=["sparse_constant"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(helper.make_sparse_tensor(values, indices, [12]))
    graph.node.add(op_type="MatMul", input=["x", "w_sparse"], output=["from_sparse"])


def add_devices(model: onnx.ModelProto) -> None:
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    sharding = model.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = sharding.sharding_spec.add(tensor_name="x", device=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_param="N", num_shards=2)
    spec.sharded_dim.add(axis=1).simple_sharding.add(dim_value=4, num_shards=2)
    spec.index_to_device_group_map.add(key=1, value=[0, 1])


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path | str, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


REFUSED_OR_TESTED_APART = {
    "ModelProto": {"training_info"},
    "TensorProto": {"segment", "external_data", "data_location"},
}


def test_everything_has_every_field_that_onnx_knows() -> None:
    """A new onnx that adds a field fails here until the field is known to survive."""
    present: dict[str, set[str]] = {}
    waiting: list[Any] = [everything()]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            present.setdefault(message.DESCRIPTOR.name, set()).add(field.name)
            if field.message_type:
                waiting += list(value) if hasattr(value, "add") else [value]
    classes = (getattr(onnx, name, None) for name in present)
    for message_type in (cls for cls in classes if cls is not None):
        name = message_type.DESCRIPTOR.name
        known = {field.name for field in message_type.DESCRIPTOR.fields}
        assert known - present[name] - REFUSED_OR_TESTED_APART.get(name, set()) == set(), name


def test_everything_survives(tmp_path: Path) -> None:
    proto = everything()
    source = save(proto, tmp_path / "in.onnx")
    Model.load(source).save(tmp_path / "out.onnx")
    assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(proto)
    Model.of(proto).clone().save(tmp_path / "clone.onnx")
    assert canonical(onnx.load(tmp_path / "clone.onnx")) == canonical(proto)


def test_everything_survives_external_data(tmp_path: Path) -> None:
    source = save(everything(), tmp_path / "in.onnx")
    Model.load(source).save(tmp_path / "apart.onnx", external_data=True)
    apart = onnx.load(tmp_path / "apart.onnx", load_external_data=False)
    external = [t.name for t in apart.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert len(external) >= 20
    Model.load(tmp_path / "apart.onnx").save(tmp_path / "again.onnx")
    whole = onnx.load(tmp_path / "again.onnx")
    for tensor in whole.graph.initializer:  # onnx.load leaves the mark when it reads the data
        tensor.ClearField("data_location")
    assert canonical(whole) == canonical(everything())


def test_weights_of_every_type_are_views_of_the_same_values(tmp_path: Path) -> None:
    model = Model.load(save(everything(), tmp_path / "in.onnx"))
    expected = ir.from_proto(onnx.GraphProto(initializer=everything().graph.initializer)).initializers
    mapped = 0
    for name, value in expected.items():
        tensor = model.ir.graph.initializers[name].const_value
        assert tensor is not None
        assert value.const_value is not None
        np.testing.assert_array_equal(tensor.numpy(), value.const_value.numpy())
        if tensor.dtype != ir.DataType.STRING:
            assert tensor.tobytes() == value.const_value.tobytes()
            assert digest(tensor) == digest(value.const_value)
        mapped += isinstance(tensor, MappedTensor)
    assert mapped >= 20


def test_a_sparse_initializer_reads_as_its_dense_form() -> None:
    tensor = Model.of(everything()).ir.graph.initializers["w_sparse"].const_value
    assert tensor is not None
    expected = np.zeros((3, 4), np.float32)
    expected.flat[[0, 4, 11]] = [1, 2, 3]
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_an_ir_3_model_keeps_its_listed_initializers(tmp_path: Path) -> None:
    proto = parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 7]> g (float[2] x, float[2] w = {1, 2}) => (float[2] y)'
        "{ y = Add(x, w) }"
    )
    Model.of(proto).save(tmp_path / "out.onnx")
    assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(proto)


def test_the_default_domain_by_its_long_name() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = Relu(x) }'
    )
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    model = Model.of(proto)
    assert model.ir.opset_imports == {"": 17}
    assert canonical(model.skeleton()) == canonical(proto)


def tiny_decoder(tmp_path: Path) -> Path:
    path = tmp_path / "decoder.onnx"
    write_decoder(Decoder(layers=2, width=64, heads=4, vocabulary=100, context=32), path)
    return path


TOKENS = {"input_ids": np.arange(20).reshape(2, 10)}


def test_external_data_stays_external(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.onnx"
    Model.load(source).save(target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(run(source, TOKENS)[0], run(target, TOKENS)[0])
    assert canonical(onnx.load(source)) == canonical(onnx.load(target))
    total = target.stat().st_size + (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert Model.load(source).file_size() == pytest.approx(total, abs=64 * 8)  # names of other lengths


def test_weights_are_read_and_written_where_the_kernel_cannot_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_decoder(tmp_path)
    Model.load(source).save(tmp_path / "copied.onnx")
    monkeypatch.delattr(os, "copy_file_range")
    Model.load(source).save(tmp_path / "written.onnx")
    data = [(tmp_path / f"{name}.onnx.data").read_bytes() for name in ("copied", "written")]
    assert data[0] == data[1]


def test_a_result_over_the_limit_gets_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = everything()
    attribute = proto.graph.node.add(op_type="Constant", output=["big"]).attribute.add(name="value", type=4)
    attribute.t.CopyFrom(helper.make_tensor("", FLOAT, [5000], np.zeros(5000)))
    model = Model.of(proto)
    inside = Model.of(proto).file_size()
    names = {}
    for limit in (inside, inside - 1, 30_000):
        monkeypatch.setattr(model_module, "PROTOBUF_LIMIT", limit)
        model.save(tmp_path / f"{limit}.onnx")
        assert (tmp_path / f"{limit}.onnx").stat().st_size <= limit
        names[limit] = (tmp_path / f"{limit}.onnx.data").exists()
    assert names == {inside: False, inside - 1: True, 30_000: True}
    monkeypatch.setattr(model_module, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(UnsupportedModelError, match="2 GB"):
        model.save(tmp_path / "never.onnx")


def test_large_external_tensors_start_on_a_page() -> None:
    weights = [np.zeros(1000, np.float32), np.zeros(300_000, np.float32), np.zeros(2000, np.float32)]
    graph = helper.make_graph([], "g", [], [])
    for index, weight in enumerate(weights):
        graph.initializer.append(onnx.numpy_helper.from_array(np.tile(weight, 2), f"w{index}"))
    plan = layout.Layout.of(Model.of(helper.make_model(graph)).ir, "d", initializers=True, attributes=False)
    offsets = [offset for offset, _ in plan.outside]
    assert offsets == [0, 8192, 2_408_192]


def test_the_staged_model_runs_before_it_is_committed(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.onnx"
    with Model.load(source).stage(target) as staged:
        np.testing.assert_array_equal(run(staged.path, TOKENS)[0], run(source, TOKENS)[0])
        assert not target.exists()
        staged.commit()
    np.testing.assert_array_equal(run(target, TOKENS)[0], run(source, TOKENS)[0])


def test_a_cache_made_of_links_works(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    source = tiny_decoder(blobs)
    source.rename(blobs / "1234")
    (blobs / "decoder.onnx.data").rename(blobs / "5678")
    (snapshot / "decoder.onnx").symlink_to("../../blobs/1234")
    (snapshot / "decoder.onnx.data").symlink_to("../../blobs/5678")
    Model.load(snapshot / "decoder.onnx").save(tmp_path / "out.onnx")
    assert run(tmp_path / "out.onnx", TOKENS)[0].shape == (2, 10, 100)


def test_in_place_keeps_reading_the_old_weights(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path)
    expected = run(source, TOKENS)[0]
    model = Model.load(source)
    with pytest.raises(UsageError, match="--in-place"):
        model.save(source)
    emptied = Model.load(source)
    emptied.ir.graph.initializers.clear()
    for untouched in model, emptied:
        with pytest.raises(UsageError, match="holds the weights"):
            untouched.save(tmp_path / "decoder.onnx.data", in_place=True)
    model.save(source, in_place=True)
    np.testing.assert_array_equal(run(source, TOKENS)[0], expected)
    model.save(tmp_path / "other.onnx")
    np.testing.assert_array_equal(run(tmp_path / "other.onnx", TOKENS)[0], expected)


def test_a_clone_shares_tensors_and_nothing_else(tmp_path: Path) -> None:
    model = Model.load(save(everything(), tmp_path / "in.onnx"))
    before = model.skeleton().SerializeToString()
    clone = model.clone()
    names = ("bias", "w_float_2048")
    for name in names:
        assert clone.ir.graph.initializers[name].const_value is model.ir.graph.initializers[name].const_value
    for graph in (clone.ir.graph, *clone.ir.graph.subgraphs()):
        for node in graph:
            node.name = "changed"
            node.metadata_props["new"] = "1"
            for value in node.outputs:
                value.dtype = ir.DataType.DOUBLE
                value.name = f"{value.name}_changed"
    for value in clone.ir.graph.inputs:
        value.name = f"{value.name}_changed"
        value.metadata_props["new"] = "1"
    for initializer in list(clone.ir.graph.initializers.values()):
        initializer.name = f"{initializer.name}_changed"
    clone.ir.metadata_props["new"] = "1"
    clone.ir.graph.opset_imports["new"] = 1
    clone.ir.graph.remove(clone.ir.graph.node(3), safe=True)
    assert model.skeleton().SerializeToString() == before


def test_a_clone_keeps_an_unsorted_graph_as_it_is() -> None:
    model = Model.of(everything())
    nodes = list(model.ir.graph)
    for node in nodes:
        model.ir.graph.remove(node)
    model.ir.graph.extend(reversed(nodes))
    assert model.clone().skeleton() == model.skeleton()


def test_the_skeleton_has_no_weights_and_infers_shapes(tmp_path: Path) -> None:
    skeleton = Model.load(tiny_decoder(tmp_path)).skeleton()
    assert skeleton.ByteSize() < 30_000
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    shapes = {info.name: info.type.tensor_type.shape for info in inferred.graph.value_info}
    assert [dim.dim_value for dim in shapes["mixed_1"].dim][-1] == 64


def test_an_unsorted_graph_is_sorted() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {'
        "a = Relu(x)  y = If(c) <then_branch = t () => (r) { r = Neg(a) },"
        " else_branch = e () => (q) { q = Abs(a) }> }"
    )
    nodes = [*proto.graph.node][::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.op_type for node in Model.of(proto).ir.graph] == ["Relu", "If"]


HOLDERS: dict[str, Callable[[onnx.ModelProto, Path], Any]] = {
    "str": lambda proto, path: str(save(proto, path)),
    "path": save,
    "proto": lambda proto, path: proto,
    "onnx_ir": lambda proto, path: ir.from_proto(proto),
    "torch": lambda proto, path: SimpleNamespace(model=ir.from_proto(proto)),
    "model": lambda proto, path: Model.of(proto),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_model_comes_from_whatever_holds_one(holder: str, tmp_path: Path) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = Relu(x) }'
    )
    held = HOLDERS[holder](proto, tmp_path / "in.onnx")
    Model.of(held).save(tmp_path / "out.onnx")
    assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(proto)


def test_what_holds_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="a int is no model"):
        Model.of(3)


def test_onnx_ir_models_keep_their_external_data(tmp_path: Path) -> None:
    source = tiny_decoder(tmp_path)
    os.link(tmp_path / "decoder.onnx.data", tmp_path / "hard_link")  # which onnx-ir refuses to read
    Model.of(ir.load(source)).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()
    np.testing.assert_array_equal(run(source, TOKENS)[0], run(tmp_path / "out.onnx", TOKENS)[0])


def test_training_info_is_refused() -> None:
    proto = everything()
    proto.training_info.add()
    with pytest.raises(UnsupportedModelError, match="training_info"):
        Model.of(proto)


def test_an_initializer_without_data_is_refused(tmp_path: Path) -> None:
    model = Model.of(everything())
    model.ir.graph.initializers["idle"].const_value = None
    with pytest.raises(InvalidModelError, match="'idle' has no data"):
        model.save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []
