"""Judge optimized models against their original, in a process of its own: `python -m tools.bench.judge`.

Reads a JSON request from standard input and prints a JSON answer (see `verdict` and `latencies`). A result is
valid if it keeps the contract and, at ORT_DISABLE_ALL, computes what the original computes.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Outputs = list[NDArray[Any]]
Body = onnx.GraphProto | onnx.FunctionProto

RELATIVE_TOLERANCE = 1e-4  # of the largest magnitude in an output
GROWTH, GROWTH_BYTES = 0.1, 100_000  # of the file; what is above is a fold that should not have been
SPREADS = 8  # times the original's own difference between optimization levels


def verdict(request: dict[str, Any]) -> dict[str, Any]:
    """Nodes, operators, size, contract and error of the file `result` compared with the file `original`."""
    original, result = onnx.load(request["original"]), onnx.load(request["result"])
    nodes = operators(result)
    size, before = file_bytes(Path(request["result"])), Path(request["original"]).stat().st_size
    grown = size > before * (1 + GROWTH) + GROWTH_BYTES
    answer = {
        "nodes": sum(nodes.values()),
        "operators": dict(nodes),
        "new_domains": sorted(domains(nodes) - domains(operators(original))),
        "bytes": size,
        "contract": [*differences(original, result), *(["the file grew"] if grown else [])],
        "remarks": remarks(original, result),
    }
    return answer | parity(request)


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Nodes by `domain::type`: local functions inlined, subgraphs included, Constants not counted."""
    flat = onnx.inliner.inline_local_functions(model) if model.functions else model
    kinds = (f"{node.domain}::{node.op_type}".removeprefix("::") for node in walk(flat.graph))
    return Counter(kind for kind in kinds if kind != "Constant")


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of `graph` and of the graphs inside it."""
    return (node for one in within(graph) for node in one.node)


def within(graph: Body) -> Iterator[Body]:
    """A graph or function body, and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                yield from within(inner)


def graphs(model: onnx.ModelProto) -> Iterator[Body]:
    """All graphs of a model, those of its functions included."""
    for body in (model.graph, *model.functions):
        yield from within(body)


def domains(nodes: Counter[str]) -> set[str]:
    """Operator domains in use, without the default one."""
    return {kind.split("::")[0] for kind in nodes if "::" in kind} - {"ai.onnx"}


def file_bytes(path: Path) -> int:
    """Size of a model's file and of the other files that were written into its folder."""
    return sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())


def differences(original: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    """What breaks the contract: names, order, types and dims of inputs and outputs, and lost metadata."""
    pairs = {
        "inputs": (interface(inputs(original)), interface(inputs(result))),
        "outputs": (interface(original.graph.output), interface(result.graph.output)),
    }
    found = [f"{what}: {first_difference(a, b)}" for what, (a, b) in pairs.items() if a != b]
    lost = metadata(original) - metadata(result)
    return [*found, *(f"metadata lost: {key}" for key, _ in sorted(lost))]


def inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs; below IR 4 without the initializers, which had to be listed there and are constants."""
    constants = {entry.name for entry in model.graph.initializer} if model.ir_version < 4 else set()
    return [value for value in model.graph.input if value.name not in constants]


def interface(values: Any) -> list[str]:
    """One line per graph input or output: name and type with its dims."""
    return [f"{value.name} {' '.join(str(value.type).split())}" for value in values]


def metadata(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """The model's metadata as pairs of key and value."""
    return {(entry.key, entry.value) for entry in model.metadata_props}


def first_difference(before: list[str], after: list[str]) -> str:
    """The first entries that differ, or how many there are."""
    if len(before) != len(after):
        return f"{len(before)} became {len(after)}"
    return next(f"{a[-120:]} became {b[-120:]}" for a, b in zip(before, after, strict=True) if a != b)


def remarks(original: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    """Differences that are reported but do not make a result invalid."""
    found = []
    if imports(original) != imports(result):
        found.append("opset imports")
    if original.ir_version != result.ir_version:
        found.append(f"IR {original.ir_version} → {result.ir_version}")
    if metadata(result) - metadata(original):
        found.append("metadata added")
    if original.graph.name != result.graph.name:
        found.append("graph name")
    return found


def imports(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Opset imports of `model`."""
    return {(entry.domain, entry.version) for entry in model.opset_import}


def parity(request: dict[str, Any]) -> dict[str, Any]:
    """Largest error of the outputs, relative to their scale, and whether it is within the tolerance."""
    plain = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = run(request["original"], request, plain)
    spread = error(expected, run(request["original"], request, ort.GraphOptimizationLevel.ORT_ENABLE_ALL))
    try:
        found = error(expected, run(request["result"], request, plain))
    except Exception as failure:  # ONNX Runtime raises many types; all mean the same here
        return {"error": None, "equal": False, "failure": str(failure).splitlines()[0][:200]}
    return {"error": found, "equal": found <= max(RELATIVE_TOLERANCE, SPREADS * spread)}


def run(path: str, request: dict[str, Any], level: Any) -> list[Outputs]:
    """Outputs of the model for each set of shapes in the request."""
    session = open_session(path, level)
    return [session.run(None, draw(request, session, turn)) for turn in range(len(request["shapes"]))]


def open_session(path: str, level: Any) -> ort.InferenceSession:
    """A session on one thread of the CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def draw(request: dict[str, Any], session: ort.InferenceSession, turn: int) -> Feeds:
    """Inputs by the recipe's ranges and values and the shapes of this turn, which also is the seed."""
    rng = np.random.default_rng(turn)
    kinds = {value.name: dtype(value.type) for value in session.get_inputs()}
    shapes = request["shapes"][turn].items()
    return {name: draw_one(request, name, tuple(shape), kinds[name], rng) for name, shape in shapes}


def draw_one(
    request: dict[str, Any], name: str, shape: tuple[int, ...], kind: np.dtype[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """One input: its fixed value, integers of its range, or normally distributed floats."""
    if name in request["values"]:
        return np.full(shape, request["values"][name], kind)
    if name in request["ranges"]:
        low, high = request["ranges"][name]
        return np.asarray(rng.integers(low, high, shape)).astype(kind)
    return np.asarray(rng.standard_normal(shape)).astype(kind)


def dtype(ort_type: str) -> np.dtype[Any]:
    """Element type of `tensor(float)` and its like."""
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def error(expected: list[Outputs], found: list[Outputs]) -> float:
    """Largest difference of two sets of outputs, relative to each output's scale; inf if not alike."""
    pairs = [pair for a, b in zip(expected, found, strict=True) for pair in zip(a, b, strict=True)]
    return max(error_of(a, b) for a, b in pairs)


def error_of(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Difference of one output."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    scale = max(float(np.abs(a[finite]).max(initial=0.0)), 1e-6)
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale


def latencies(request: dict[str, Any]) -> dict[str, float]:
    """Median seconds per run of each of `files`, at ORT_ENABLE_ALL on one thread, interleaved."""
    level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    sessions = {name: open_session(path, level) for name, path in request["files"].items()}
    feeds = draw(request, next(iter(sessions.values())), 0)
    for session in sessions.values():
        session.run(None, feeds)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    deadline = time.perf_counter() + request["seconds"]
    while time.perf_counter() < deadline or len(next(iter(times.values()))) < request["rounds"]:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds)
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = latencies(request) if "files" in request else verdict(request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
