"""Who takes part, and the command by which each prunes a model.

A name is the contestant and its cut: what is removed, and how much of it. Those of one cut are compared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tools.bench.roster import Roster

SEPARATOR = ", "
GRAPHOPT, PEER = "graphopt", "onnxsim"
RATIOS = (30, 50, 70)
WEIGHTS = ("magnitude", "global-magnitude", "wanda", "sparsegpt")
PATTERNS = ("magnitude", "wanda", "sparsegpt")  # global magnitude has no N:M
CHANNELS = ("channels", "wanda-channels")


@dataclass(frozen=True)
class Cut:
    """What is removed.

    Attributes:
        options: that ask graphopt for it.
        methods: of the peer that do the same.
        ratio: as the peer takes it, such as ``0.5`` or ``2:4``.
        promises_speed: whether fewer multiply-accumulates are left.
    """

    options: tuple[str, ...]
    methods: tuple[str, ...] = ()
    ratio: str = ""
    promises_speed: bool = False


def cuts() -> dict[str, Cut]:
    """All cuts by name, in the order of tables."""
    found = {f"sparsity {ratio} %": sparsity(ratio, WEIGHTS) for ratio in RATIOS}
    found["2:4"] = Cut(("--sparsity", "2:4"), PATTERNS, "2:4")
    found |= {f"channels {ratio} %": channels(ratio, CHANNELS) for ratio in RATIOS}
    return found | {"rank": Cut(("--rank", "auto"), promises_speed=True)}


def sparsity(ratio: int, methods: tuple[str, ...] = ()) -> Cut:
    """This percentage of weights becomes zero."""
    return Cut(("--sparsity", f"{ratio / 100:g}"), methods, f"{ratio / 100:g}")


def channels(ratio: int, methods: tuple[str, ...] = (), *more: str) -> Cut:
    """This percentage of channels goes; ``more`` options are only graphopt's."""
    share = f"{ratio / 100:g}"
    return Cut(("--channels", share, *more), methods, share, promises_speed=True)


HALVES_MACS = 25
"""The least percentage of channels, in steps of 5, with which the small CNN keeps at most half of its MACs.

The channels are chosen by time, the default: who wants half of the arithmetic gone wants the speed. Chosen by
the MACs themselves, more accuracy is left, and hardly any speed is gained.
"""

CUTS = cuts()
FLOOR = {  # only of graphopt, and only where a goal asks for them
    "sparsity 80 %": sparsity(80),
    "half the MACs": channels(HALVES_MACS),
    "half the MACs and int8": channels(HALVES_MACS, (), "--precision", "int8"),
}
ALL = CUTS | FLOOR
OURS = [f"{GRAPHOPT}{SEPARATOR}{cut}" for cut in ALL]
PEERS = {
    f"{PEER} {method}{SEPARATOR}{name}": (method, cut.ratio)
    for name, cut in CUTS.items()
    for method in cut.methods
}


def cut_of(name: str) -> str:
    """The cut in the name of a contestant."""
    return name.partition(SEPARATOR)[2]


def ours(cut: str) -> str:
    """graphopt's name for a cut."""
    return f"{GRAPHOPT}{SEPARATOR}{cut}"


def peers(cut: str) -> list[str]:
    """The peer's methods for a cut."""
    return [name for name in PEERS if cut_of(name) == cut]


def command(name: str, model: Path, samples: Path, result: Path, peers_python: str) -> list[str]:
    """Command by which the contestant `name` prunes `model` into `result`, on `samples`.

    graphopt runs in this interpreter, the peer in `peers_python`.
    """
    if name in PEERS:
        method, ratio = PEERS[name]
        arguments = [str(model), str(samples), str(result), method, ratio]
        return [peers_python, "-m", "tools.bench.pruning.peer", *arguments]
    options = [*ALL[cut_of(name)].options, "--data", str(samples), "--threads", "1"]
    return [sys.executable, "-m", "graphopt", "optimize", str(model), str(result), *options]


ROSTER = Roster(OURS, PEERS, command)
