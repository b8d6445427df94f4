"""Ask a judge, who works in a process of its own: one request as JSON in, one answer as JSON out.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tools.bench.conversion import environment

Facts = dict[str, Any]


class JudgeError(Exception):
    """The judge could not answer; the message is one line."""


def ask(module: str, request: Facts, limit_s: float | None = None) -> Facts:
    """Answer of the judge, the `main` of a module.

    Raises:
        JudgeError: it failed, with the last line that it printed, or took longer than `limit_s` seconds.
    """
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise JudgeError(f"no verdict in {limit_s:g} s") from None
    if done.returncode:
        raise JudgeError((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1][:300])
    answer: Facts = json.loads(done.stdout)
    return answer
