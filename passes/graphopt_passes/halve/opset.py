"""The opset from which operators may be half: Conv, pooling and others are bfloat16 only since 22.

float16 is as old as ONNX. Of the operators that gained it later only those of quantization matter, from 19
on: everything stands between them in a quantized model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from graphopt import graph as g
from graphopt.errors import WorkerError
from graphopt.pipeline import Run
from graphopt.proof.inference import infers
from graphopt.target import REFERENCE
from graphopt_passes.exact.raise_opset import raised
from graphopt_passes.halve.signatures import may_be

if TYPE_CHECKING:
    from graphopt.model import Model


_QUANTIZATION = {"QuantizeLinear", "DequantizeLinear"}


def raise_for(model: Model, run: Run, half: str) -> None:
    """Raise the opset in place if operators of the model may be half only then, as far as it can be.

    ONNX Runtime has no kernels for some operators of the newest opsets, such as random numbers of 22; so a
    model that it loads must still load afterwards.
    """
    for version in sorted(set(_gains(model.ir, half)), reverse=True):
        trial, inner = model.clone(), Run(run.target, run.worker, keep=run.keep)
        if raised(trial, inner, version) is None and _is_sound(trial, inner, model):
            model.ir = trial.ir
            run.forget()
            for note in inner.journal.notes:
                run.journal.note(note)
            return


def _is_sound(trial: Model, run: Run, model: Model) -> bool:
    """Whether a raised model passes strict inference and loads, as far as the model itself does."""
    if infers(model) and not infers(trial):
        _drop_false_claims(trial, run)
        if not infers(trial):
            return False
    return _loads(trial, run) or not _loads(model, run)


def _loads(model: Model, run: Run) -> bool:
    path = run.worker.pool.write(model)
    try:
        with run.worker.opened(path, REFERENCE, 1):
            return True
    except WorkerError:
        return False
    finally:
        path.unlink()


def _drop_false_claims(model: Model, run: Run) -> None:
    """Forget the stated shapes of inner values, since newer operators infer others."""
    for value in (value for node in g.nodes(model.ir) for value in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    run.journal.note("stated shapes of inner values were dropped: what newer operators infer differs")


def _gains(model: ir.Model, half: str) -> Iterator[int]:
    """The opsets above the model's at which an operator of it, or Cast, may be half for the first time."""
    newest = onnx.defs.onnx_opset_version()
    for graph in g.graphs(model):
        now = g.opset(model, graph)
        standard = {node.op_type for node in graph if node.domain in g.DEFAULT_DOMAINS} | {"Cast"}
        for op_type in standard if half == "bfloat16" else standard & _QUANTIZATION:
            if not may_be(op_type, now, half):
                yield from [v for v in range(now + 1, newest + 1) if may_be(op_type, v, half)][:1]
