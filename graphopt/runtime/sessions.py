"""The only place that makes ONNX Runtime sessions; it runs inside the worker process.

Feeds and results are :mod:`graphopt.runtime.values`. Tensors are handed over as OrtValues, because numpy
cannot feed bfloat16, float8 or 4-bit types.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from graphopt.errors import UsageError
from graphopt.runtime.heap import give_back
from graphopt.runtime.profile import NodeTime, read_trace, record
from graphopt.runtime.values import (
    BFLOAT16,
    NUMPY_TYPES,
    PACKED_BITS,
    STRING,
    FileRange,
    Tensor,
    Value,
    dtype_of,
)
from graphopt.runtime.watching import Collected, Wanted, Watch
from graphopt.target import REFERENCE, Target

SPILL_BYTES = 64 * 1024
_ALIGNMENT = 64
# Smaller weights stay inside a dumped graph, where shapes and scales can be read from it.
_LEAST_EXTERNAL = 4096
# A measurement shorter than this is repeated inside the clock, so that the clock's grain does not matter.
_SHORTEST_TIMING_S = 0.5e-3
_FEWEST_ROUNDS = 4
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

Configure = Callable[[ort.SessionOptions], None]


@dataclass(frozen=True)
class ValueInfo:
    """Name, ONNX Runtime's type text such as ``tensor(float)``, and shape (None or a name: dynamic)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class SessionInfo:
    """What a session takes and gives, and the seconds that it took to make."""

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    overridable: tuple[ValueInfo, ...]
    seconds: float


class Runtime:
    """Sessions by number; each method is one request of :class:`graphopt.runtime.worker.Worker`."""

    def __init__(self, spill: Path, custom_ops: Sequence[str]) -> None:
        self._spill = spill
        self._custom_ops = custom_ops
        self._sessions: dict[int, ort.InferenceSession] = {}
        self._watches: dict[int, Watch] = {}

    def providers(self) -> list[str]:
        """The execution providers that this ONNX Runtime was built with."""
        return list(ort.get_available_providers())

    def evaluate(self, model: bytes, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run a model once, with nothing rewritten by ONNX Runtime, and forget it."""
        return self._results(self._session(model, REFERENCE, threads=1), feeds)

    def open(self, key: int, model: bytes | str, target: Target, threads: int) -> SessionInfo:
        """Make session ``key``; ``threads`` 0 leaves the number to ONNX Runtime."""
        start = time.perf_counter()
        session = self._session(model, target, threads)
        seconds = time.perf_counter() - start
        self._sessions[key] = session
        return SessionInfo(
            _infos(session.get_inputs()),
            _infos(session.get_outputs()),
            _infos(session.get_overridable_initializers()),
            seconds,
        )

    def run(self, key: int, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run session ``key`` once."""
        return self._results(self._sessions[key], feeds)

    def time(
        self, keys: Sequence[int], feeds: Mapping[str, Value], rounds: int, budget_s: float
    ) -> list[list[float]]:
        """Seconds per run of each session, interleaved, one list per session.

        Every round runs each session once, in an order that turns by one each round. At most ``rounds`` are
        made, fewer once ``budget_s`` is spent, but no fewer than four.
        """
        runs = [_as_users_run(self._sessions[key], feeds) for key in keys]
        repeats = max(1, round(_SHORTEST_TIMING_S / max(*map(_warm_up, runs), 1e-7)))
        seconds: list[list[float]] = [[] for _ in runs]
        end = time.perf_counter() + budget_s
        for turn in range(rounds):
            if turn >= _FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for i in range(len(runs)):
                index = (i + turn) % len(runs)
                seconds[index].append(_timed(runs[index], repeats))
        return seconds

    def watch(self, key: int, wanted: Sequence[Wanted]) -> None:
        """Start accumulators over the outputs of session ``key``."""
        self._watches[key] = Watch(wanted)

    def feed(self, key: int, feeds: Mapping[str, Value]) -> None:
        """Run session ``key`` once for its accumulators."""
        session = self._sessions[key]
        names = [output.name for output in session.get_outputs()]
        run = _prepared(session, feeds)
        self._watches[key].feed(dict(zip(names, run(), strict=True)))

    def collected(self, key: int) -> list[list[Collected]]:
        """What the accumulators over session ``key`` have gathered; they end, and so does the session.

        Results travel as copies, for which its memory is better used.
        """
        self._sessions.pop(key, None)
        give_back()
        return self._watches.pop(key).results()

    def optimized(self, model: bytes | str, target: Target, threads: int) -> str:
        """The path of the graph that ONNX Runtime runs for a model, in a new folder, weights beside it."""
        folder = Path(tempfile.mkdtemp(dir=self._spill))

        def dump(options: ort.SessionOptions) -> None:
            options.optimized_model_filepath = str(folder / "model.onnx")
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", "model.onnx.data")
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_LEAST_EXTERNAL))

        self._session(model, target, threads, dump)
        return str(folder / "model.onnx")

    def profile(
        self, model: bytes | str, feeds: Mapping[str, Value], target: Target, threads: int, budget_s: float
    ) -> list[NodeTime]:
        """Times of the nodes that ONNX Runtime runs for a model."""
        folder = tempfile.mkdtemp(dir=self._spill)

        def trace(options: ort.SessionOptions) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "trace")

        session = self._session(model, target, threads, trace)
        record(_prepared(session, feeds), budget_s)
        path = Path(session.end_profiling())
        times = read_trace(path)
        shutil.rmtree(folder)
        return times

    def close(self, key: int) -> None:
        """Forget session ``key``."""
        self._sessions.pop(key, None)
        self._watches.pop(key, None)
        give_back()

    def peak_memory(self) -> int:
        """Peak resident memory of this process in bytes."""
        status = Path("/proc/self/status")
        if status.exists():  # unlike ru_maxrss, VmHWM does not start at the size of the parent
            line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _session(
        self, model: bytes | str, target: Target, threads: int, configure: Configure | None = None
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = _LEVELS[target.level]
        options.intra_op_num_threads = threads
        # Threads of one session that spin on after its run would steal time from the next session's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.disable_prepacking", str(int(not target.prepacks)))
        for library in self._custom_ops:
            try:
                options.register_custom_ops_library(library)
            except Exception as error:  # ONNX Runtime has no class of its own for it
                raise UsageError(f"custom operators cannot be loaded from {library}: {error}") from error
        if configure is not None:
            configure(options)
        if target.providers != REFERENCE.providers:
            _load_cuda()
        session = ort.InferenceSession(model, options, list(target.providers), target.provider_options)
        session.disable_fallback()
        if target.providers[0] not in session.get_providers():
            raise RuntimeError(f"{target.providers[0]} does not start on this machine")
        return session

    def _results(self, session: ort.InferenceSession, feeds: Mapping[str, Value]) -> dict[str, Value]:
        names = [output.name for output in session.get_outputs()]
        run = _prepared(session, feeds)
        values = [_from_runtime(value) for value in run()]
        return dict(zip(names, self._spilled(values), strict=True))

    def _spilled(self, values: list[Value]) -> list[Value]:
        """The values with large tensors moved to one new file in the spill folder."""
        if not any(_is_large(value) for value in values):
            return values
        handle, path = tempfile.mkstemp(dir=self._spill)
        try:
            with os.fdopen(handle, "wb") as file:
                return [_write(value, file, path) if _is_large(value) else value for value in values]
        except OSError:  # the disk is full
            os.unlink(path)
            raise


@functools.cache
def _load_cuda() -> None:
    """Load CUDA from the packages beside ONNX Runtime's, where the system does not look for it."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what is missing the session's own error tells
            ort.preload_dlls()


def _is_large(value: Value) -> bool:
    return isinstance(value, Tensor) and value.nbytes > SPILL_BYTES


def _write(value: Any, file: Any, path: str) -> Tensor:
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    file.write(value.raw())
    return Tensor(value.elem_type, value.shape, FileRange(path, offset, value.nbytes))


def _infos(args: Iterable[Any]) -> tuple[ValueInfo, ...]:
    return tuple(ValueInfo(arg.name, arg.type, tuple(arg.shape or ())) for arg in args)


def _prepared(session: ort.InferenceSession, feeds: Mapping[str, Value]) -> Any:
    """A call without arguments that runs the session; what it needs is converted once, here.

    Keep it as long as its results are used: an output that is an input lies in the memory of what was fed.
    """
    names = [output.name for output in session.get_outputs()]
    types = [arg.type for arg in session.get_outputs()]
    plain = all(isinstance(value, Tensor) and value.elem_type != STRING for value in feeds.values())
    inputs = {name: _to_runtime(value) for name, value in feeds.items()}
    if plain and all(text.startswith("tensor(") and text != "tensor(string)" for text in types):
        return lambda: session.run_with_ort_values(names, inputs)
    return lambda: session.run(names, inputs)


def _as_users_run(session: ort.InferenceSession, feeds: Mapping[str, Value]) -> Any:
    """The same, from numpy to numpy, where numpy has all types.

    OrtValues cost some 50 µs more in each run, which hides the gains of small models.
    """
    types = {arg.type for arg in (*session.get_inputs(), *session.get_outputs())}
    if not types <= NUMPY_TYPES:
        return _prepared(session, feeds)
    names = [output.name for output in session.get_outputs()]
    arrays = {name: np.array(value.numpy()) for name, value in feeds.items() if isinstance(value, Tensor)}
    return lambda: session.run(names, arrays)


def _to_runtime(value: Value) -> Any:
    if isinstance(value, list):
        return [item.numpy() for item in value]
    if not isinstance(value, Tensor):
        return value
    return value.numpy() if value.elem_type == STRING else _ort_value(value)


def _ort_value(tensor: Tensor) -> ort.OrtValue:
    """An OrtValue over the tensor's bytes, without a copy where ONNX Runtime allows it."""
    if tensor.elem_type < BFLOAT16 and tensor.size:
        array = tensor.raw().view(dtype_of(tensor.elem_type)).reshape(tensor.shape)
        return ort.OrtValue.ortvalue_from_numpy(array if array.flags.aligned else array.copy())
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(tensor.shape), tensor.elem_type)
    raw = tensor.raw()
    if len(raw) != value.tensor_size_in_bytes():
        raise ValueError(
            f"{len(raw)} bytes given, {value.tensor_size_in_bytes()} needed by shape {tensor.shape}"
        )
    ctypes.memmove(value.data_ptr(), raw.ctypes.data, len(raw))
    return value


def _from_runtime(value: Any) -> Value:
    if isinstance(value, ort.OrtValue):
        return _from_ort_value(value)
    if isinstance(value, list):
        return [Tensor.of(item) if isinstance(item, np.ndarray) else item for item in value]
    return value if value is None or isinstance(value, dict) else Tensor.of(value)


def _from_ort_value(value: ort.OrtValue) -> Tensor:
    elem_type, shape = value.element_type(), tuple(value.shape())
    if elem_type in PACKED_BITS or elem_type >= BFLOAT16:
        data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
        return Tensor(elem_type, shape, data)
    array: NDArray[Any] = value.numpy()  # a copy, also from the memory of another device
    return Tensor(elem_type, shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _warm_up(run: Any) -> float:
    """Seconds of one run after a first one that allocates."""
    run()
    return _timed(run, 1)


def _timed(run: Any, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
