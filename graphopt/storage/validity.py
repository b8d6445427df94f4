"""Checks of a model as a whole, made when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from graphopt.errors import InvalidModelError, UnsupportedModelError


def check_versions(proto: onnx.ModelProto) -> None:
    """Refuse what is no model, what is newer than the installed onnx, and what we would have to drop.

    Raises:
        InvalidModelError: no graph, IR version or opset is stated.
        UnsupportedModelError: a version is newer than the installed onnx, or there is training information.
    """
    if proto.ir_version < 1:
        raise InvalidModelError("not an ONNX model: it states no IR version")
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"IR version {proto.ir_version} is newer than the installed onnx's, {onnx.IR_VERSION}; upgrade it"
        )
    if not proto.HasField("graph"):
        raise InvalidModelError("not an ONNX model: it has no graph")
    if proto.training_info:
        raise UnsupportedModelError(
            "the model carries training_info, which refers to the graph by name; remove it first"
        )
    if not proto.opset_import and proto.ir_version >= 3:
        raise InvalidModelError("the model imports no opset; state one in opset_import")
    latest = onnx.defs.onnx_opset_version()
    imports = [*proto.opset_import, *(opset for f in proto.functions for opset in f.opset_import)]
    for opset in imports:
        if opset.domain not in ("", "ai.onnx"):
            continue
        if opset.version < 1:
            raise InvalidModelError(f"opset {opset.version} does not exist")
        if opset.version > latest:
            raise UnsupportedModelError(
                f"opset {opset.version} is newer than the installed onnx ({latest}); upgrade onnx"
            )


def check_text(*texts: str) -> None:
    """Refuse text that is not UTF-8, which protobuf reads as bytes but does not write.

    Raises:
        InvalidModelError: one of the texts is not UTF-8.
    """
    try:
        "".join(texts)
    except TypeError:
        wrong = next(text for text in texts if not isinstance(text, str))
        raise InvalidModelError(f"the name or text {wrong!r} is not UTF-8") from None


def check_recursion(functions: Sequence[ir.Function]) -> None:
    """Take away functions that call no other, again and again; what stays calls itself.

    Raises:
        InvalidModelError: a function calls itself, directly or through others.
    """
    known = {function.identifier() for function in functions}
    calls = {f.identifier(): known & {n.op_identifier() for n in f.all_nodes()} for f in functions}
    while leaves := {caller for caller, callees in calls.items() if not callees & calls.keys()}:
        calls = {caller: callees for caller, callees in calls.items() if caller not in leaves}
    if calls:
        raise InvalidModelError(f"function {next(iter(calls))[1]!r} calls itself, directly or through others")
