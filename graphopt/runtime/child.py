"""The worker's process: answers pickled requests on its standard input until that ends.

It imports only the standard library, numpy and ONNX Runtime; started as ``python -m graphopt.runtime.child``.
"""

from __future__ import annotations

import os
import pickle
import queue
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from graphopt.errors import UsageError

_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "Cannot allocate memory")


def main() -> None:
    """Serve requests ``(method, arguments)``; each answer is ``("ok", result)`` or ``(failure, message)``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    requests: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    _serve(requests, answers)


def _read(stream: BinaryIO, requests: queue.SimpleQueue[tuple[str, tuple[Any, ...]]]) -> None:
    """Queue the requests; when the parent is gone, so is this process, even in the middle of a run."""
    try:
        while True:
            requests.put(pickle.load(stream))
    except EOFError:  # the parent removes its folder itself, unless it was killed
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        os._exit(0)


def _serve(requests: queue.SimpleQueue[tuple[str, tuple[Any, ...]]], answers: BinaryIO) -> None:
    spill, custom_ops, memory_limit = sys.argv[1], sys.argv[3:], int(sys.argv[2])
    runtime: Any = None
    try:
        from graphopt.runtime.sessions import Runtime

        runtime = Runtime(Path(spill), custom_ops)
    except ImportError as error:
        missing = str(error)
    if memory_limit:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_limit if most == resource.RLIM_INFINITY else min(memory_limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    while True:
        method, arguments = requests.get()
        answer = ("missing", missing) if runtime is None else _answer(runtime, method, arguments)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _answer(runtime: Any, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "ok", getattr(runtime, method)(*arguments)
    except UsageError as error:
        return "usage", str(error)
    except MemoryError as error:
        return "memory", str(error)
    except OSError as error:  # results could not be spilled
        return "refused", str(error)
    except Exception as error:
        out_of_memory = any(text in str(error) for text in _OUT_OF_MEMORY)
        return "memory" if out_of_memory else "failed", str(error)


if __name__ == "__main__":
    main()
