"""The contract of a model: every change of it is found and said."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import parser

from graphopt.interface import Interface, differences, notices, type_text
from graphopt.model import Model

TEXT = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "exporter", domain: "org", model_version: 3,
 doc_string: "about", metadata_props: ["author": "me"]>
agraph (float[N, 4] x, float[4] bias = {1, 2, 3, 4}) => (float[N, 4] y, float[N, 4] z)
{ y = Add(x, bias)  z = Relu(y) }
"""


def the_model() -> onnx.ModelProto:
    return parser.parse_model(TEXT)


def test_a_model_and_its_protobuf_have_the_same_contract() -> None:
    proto = the_model()
    assert differences(Interface.of(proto), Interface.of(Model.of(proto))) == []
    assert notices(Interface.of(proto), Interface.of(Model.of(proto))) == []


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "renamed"


def swap_outputs(proto: onnx.ModelProto) -> None:
    outputs = [*proto.graph.output][::-1]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)


def drop_input(proto: onnx.ModelProto) -> None:
    del proto.graph.input[1]


def bake_dim(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def change_type(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def denote(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"


def freeze(proto: onnx.ModelProto) -> None:
    del proto.graph.initializer[:]


def drop_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def change_version(proto: onnx.ModelProto) -> None:
    proto.model_version = 4


def lose_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 16


def lower_ir(proto: onnx.ModelProto) -> None:
    proto.ir_version = 7


def drop_port_doc(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].doc_string = "new"


CHANGES: dict[Callable[[onnx.ModelProto], None], str] = {
    rename_input: "the inputs were 'x', 'bias' and are 'renamed', 'bias'",
    swap_outputs: "the outputs were 'y', 'z' and are 'z', 'y'",
    drop_input: "the inputs were 'x', 'bias' and are 'x'",
    bake_dim: "input 'x': the type was float[N,4] and is float[1,4]",
    change_type: "output 'y': the type was float[N,4] and is float16[N,4]",
    denote: "output 'y': the type was float[N,4] and is float[N{DATA_BATCH},4]",
    freeze: "input 'bias' has lost its default value",
    drop_metadata: "metadata 'author' was 'me' and is None",
    change_version: "the 'model version' was 3 and is 4",
    lose_opset: "the opset of domain '' was 17 and is 16",
    lower_ir: "the IR version was 8 and is 7",
    drop_port_doc: "input 'x': the doc string was '' and is 'new'",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_is_one_line(change: Callable[[onnx.ModelProto], None]) -> None:
    proto = the_model()
    change(proto)
    assert differences(Interface.of(the_model()), Interface.of(proto)) == [CHANGES[change]]


def test_an_input_may_be_frozen_on_request() -> None:
    proto = the_model()
    drop_input(proto)
    before, after = Interface.of(the_model()), Interface.of(proto)
    assert differences(before, after, frozen={"bias"}) == []
    assert differences(before, after, frozen={"x"}) != []


def test_additions_are_notices() -> None:
    proto = the_model()
    proto.ir_version = 9
    proto.opset_import.add(domain="com.microsoft", version=1)
    before, after = Interface.of(the_model()), Interface.of(proto)
    assert differences(before, after) == []
    assert notices(before, after) == [
        "IR version 8 became 9",
        "opset 1 of domain 'com.microsoft' was added",
    ]
    assert differences(after, before) == [
        "the opset of domain 'com.microsoft' was 1 and is None",
        "the IR version was 9 and is 8",
    ]


def test_types_read_well() -> None:
    tensor = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N", None, 3])
    assert type_text(tensor) == "float[N,?,3]"
    assert type_text(onnx.helper.make_sequence_type_proto(tensor)) == "seq(float[N,?,3])"
    number = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    of_map = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, number)
    assert type_text(of_map) == "map(int64,float)"
    assert type_text(onnx.TypeProto()) == "?"


def test_half_ports_are_alike_to_floats_only_if_asked() -> None:
    before, after = the_model(), the_model()
    after.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    after.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    contracts = Interface.of(before), Interface.of(after)
    assert len(differences(*contracts)) == 2
    assert differences(contracts[0].with_floats(), contracts[1].with_floats()) == []
