"""A child process that owns all ONNX Runtime sessions, within limits on time and memory.

ONNX Runtime can end the process that it runs in, and importing it takes longer than most passes. So it lives
in a child that starts at once and imports while the parent works; a child that dies is a :class:`WorkerError`
and the next call starts another.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import select
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from graphopt.errors import MissingRuntimeError, SystemRefusedError, UsageError, WorkerError
from graphopt.runtime.values import Feeds, Value
from graphopt.storage.pool import Pool
from graphopt.target import CPU, Target

if TYPE_CHECKING:
    from graphopt.runtime.profile import NodeTime
    from graphopt.runtime.sessions import SessionInfo
    from graphopt.runtime.watching import Collected, Wanted

_LONGEST_MESSAGE = 400
# What C++, Python and the C library say last of a process that gets no more memory.
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "cannot allocate memory")


@dataclass
class Session:
    """A session in the worker; it is made again by itself after the worker had to be restarted."""

    key: int
    model: bytes | str
    target: Target
    threads: int
    info: SessionInfo
    life: int


class Worker:
    """Runs models in a child process.

    Args:
        memory_limit: bytes of data memory that the child may have (RLIMIT_DATA); None is nine tenths of
            the machine's.
        time_limit: seconds that one call may take.
        custom_ops: shared libraries of custom operators to register in every session.

    Attributes:
        folder: for files that nobody needs after the worker; the child removes it when the parent is killed.
        pool: writes models there that are run and forgotten.

    Every method raises :class:`WorkerError` whose ``reason`` is ``failed`` (ONNX Runtime says no), ``died``,
    ``timeout`` or ``memory``; :class:`MissingRuntimeError` without ONNX Runtime; and
    :class:`SystemRefusedError` when the disk for large results is full; :class:`UsageError` when a library of
    custom operators cannot be loaded.
    """

    def __init__(
        self,
        memory_limit: int | None = None,
        time_limit: float = 600.0,
        custom_ops: Sequence[Path] = (),
    ) -> None:
        for library in custom_ops:
            if not library.is_file():
                raise UsageError(f"no such library of custom operators: {library}")
        self._memory_limit = memory_limit or _most_memory()
        self._time_limit = time_limit
        self._custom_ops = custom_ops
        self.folder = Path(tempfile.mkdtemp(prefix="graphopt-"))
        self.pool = Pool(self.folder / "pool")
        self._cleanup = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._keys = itertools.count()
        self._life = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End the child and remove its spilled files; what the parent has mapped of them stays readable."""
        self._kill()
        self._cleanup()

    def fresh(self) -> Worker:
        """Another worker with the same limits, whose process has run nothing yet."""
        return Worker(self._memory_limit, self._time_limit, self._custom_ops)

    def providers(self) -> list[str]:
        """The execution providers that the installed ONNX Runtime offers."""
        return list(self._call("providers"))

    def evaluate(self, model: bytes, feeds: Feeds) -> dict[str, Value]:
        """Run a serialized model once on the CPU with nothing rewritten, as constant folding needs it.

        A feed may be a Tensor over a FileRange, so that weights do not travel.
        Results above 64 KiB come back as ranges of one file in a folder that lives as long as the worker.
        """
        return dict(self._call("evaluate", model, dict(feeds)))

    def open(self, model: bytes | str | Path, target: Target = CPU, threads: int = 0) -> Session:
        """Make a session of a file or of serialized bytes; ``threads`` 0 means ONNX Runtime's default.

        Raises:
            UsageError: this ONNX Runtime has no such execution provider.
        """
        if target.providers != CPU.providers:
            self._require(target)
        model = _located(model)
        key = next(self._keys)
        info = self._call("open", key, model, target, threads)
        return Session(key, model, target, threads, info, self._life)

    @contextlib.contextmanager
    def opened(self, model: bytes | str | Path, target: Target = CPU, threads: int = 0) -> Iterator[Session]:
        """A session as of :meth:`open`, which is closed in the end."""
        session = self.open(model, target, threads)
        try:
            yield session
        finally:
            self.close(session)

    def run(self, session: Session, feeds: Feeds) -> dict[str, Value]:
        """The outputs of one run, by name; large ones as file ranges, see :func:`.values.keep`."""
        self._revive(session)
        return dict(self._call("run", session.key, dict(feeds)))

    def time(
        self, sessions: Sequence[Session], feeds: Feeds, rounds: int = 1000, budget_s: float = 2.0
    ) -> list[list[float]]:
        """Interleaved timings, one list of seconds per session, all of the same length (at least four)."""
        for session in sessions:
            self._revive(session)
        keys = [session.key for session in sessions]
        return list(self._call("time", keys, dict(feeds), rounds, budget_s))

    def watch(self, session: Session, wanted: Sequence[Wanted]) -> None:
        """Start accumulators over a session's outputs; they end with ``collected``, or with the child."""
        self._revive(session)
        self._call("watch", session.key, wanted)

    def feed(self, session: Session, feeds: Feeds) -> None:
        """Run a watched session once; what comes out stays in the child, for its accumulators."""
        self._call("feed", session.key, dict(feeds))

    def collected(self, session: Session) -> list[list[Collected]]:
        """What the accumulators have gathered, in the order that was asked for; the session is closed."""
        return list(self._call("collected", session.key))

    def optimized(self, model: bytes | str | Path, target: Target = CPU, threads: int = 0) -> Path:
        """The file of the graph that ONNX Runtime really runs for a model.

        It lies in a folder of its own, its large weights beside it, that lives as long as the worker: remove
        it when it is read. It is for reading only, and for this machine.
        """
        return Path(self._call("optimized", _located(model), target, threads))

    def profile(
        self,
        model: bytes | str | Path,
        feeds: Feeds,
        target: Target = CPU,
        threads: int = 0,
        budget_s: float = 1.0,
    ) -> list[NodeTime]:
        """Times of the nodes of :meth:`optimized`, from at least four runs and at most a hundred."""
        return list(self._call("profile", _located(model), dict(feeds), target, threads, budget_s))

    def close(self, session: Session) -> None:
        """Forget a session, freeing its memory in the child."""
        if session.life == self._life and self._child is not None:
            self._call("close", session.key)

    def peak_memory(self) -> int:
        """Peak resident memory of the child in bytes."""
        return int(self._call("peak_memory"))

    def _require(self, target: Target) -> None:
        """Refuse a provider that is not there; ONNX Runtime itself would quietly run on the CPU."""
        if missing := set(target.providers) - set(self.providers()):
            raise UsageError(
                f"target '{target.name}' needs {', '.join(sorted(missing))}, which this ONNX Runtime lacks:"
                " install graphopt[gpu], or choose another target"
            )

    def _revive(self, session: Session) -> None:
        if session.life != self._life or self._child is None:
            self._call("open", session.key, session.model, session.target, session.threads)
            session.life = self._life

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "graphopt.runtime.child", str(self.folder)]
        command += [str(self._memory_limit), *map(os.path.abspath, self._custom_ops)]
        search_path = os.pathsep.join(path for path in sys.path if path)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._life += 1
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | {"PYTHONPATH": search_path},
            process_group=0,  # Ctrl-C on the terminal goes to the parent alone
        )

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the child's end is told from its answer, below
                pickle.dump((method, arguments), self._child.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                self._child.stdin.flush()
            status, result = self._answer(self._child.stdout)
        except BaseException:  # also Ctrl-C: an unread answer would be taken for the next call's
            self._kill()
            raise
        if status == "ok":
            return result
        if status == "missing":
            raise MissingRuntimeError(
                f"ONNX Runtime cannot be imported ({_line(result)}): install graphopt[cpu] or graphopt[gpu]"
            )
        if status == "refused":
            raise SystemRefusedError(f"results cannot be written to {self.folder}: {_line(result)}")
        if status == "usage":
            raise UsageError(_line(result))
        if status == "memory":
            raise self._out_of_memory(result)
        raise WorkerError(_line(result), status)

    def _answer(self, stream: IO[bytes]) -> tuple[str, Any]:
        ready, _, _ = select.select([stream], [], [], self._time_limit)
        if not ready:
            raise WorkerError(f"no answer from ONNX Runtime in {self._time_limit:g} s", "timeout")
        try:
            status, result = pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            raise self._death() from None
        return status, result

    def _death(self) -> WorkerError:
        assert self._child is not None
        code = self._child.wait()
        self._stderr.seek(0)
        last = _line(self._stderr.read()[-4000:].decode(errors="replace"))
        if any(sign in last for sign in _OUT_OF_MEMORY):
            return self._out_of_memory(last)
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerError(f"ONNX Runtime ended its process ({cause}){': ' + last if last else ''}", "died")

    def _out_of_memory(self, message: str) -> WorkerError:
        allowed = f"{self._memory_limit / 1e9:.3g} GB"
        told = f"ONNX Runtime ran out of memory; it may take {allowed}, --memory-limit allows more"
        return WorkerError(f"{told}: {_line(message)}", "memory")

    def _kill(self) -> None:
        child, self._child = getattr(self, "_child", None), None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, self._stderr):
            with contextlib.suppress(OSError):  # a pipe that still holds an unsent request
                stream.close()


def _located(model: bytes | str | Path) -> bytes | str:
    return model if isinstance(model, bytes) else os.fspath(model)


def _most_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 9 // 10


def _line(message: str) -> str:
    """The message as one line of bounded length."""
    text = " ".join(message.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
