"""Who takes part, and the command by which each puts weights on few bits; blocks of 32 for all."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.bench.roster import Roster

BLOCK = 32
ONLY = ("--no-verify",)  # then there is no budget that could give a weight more bits than were asked for
OURS: dict[str, tuple[str, bool, tuple[str, ...]]] = {  # precision, whether it gets samples, more options
    "graphopt int4": ("int4-weights", True, ()),
    "graphopt int4 only": ("int4-weights", True, ONLY),
    "graphopt int4 only, awq": ("int4-weights", True, ("--rounding", "awq", *ONLY)),
    "graphopt int4 only, no data": ("int4-weights", False, ONLY),
    "graphopt int8": ("int8-weights", True, ()),
}
MIXED = ("graphopt int4",)  # has weights of 8 bits and of floats too, as the budget wants it
PEERS = {
    "ORT default int4": ("default", 4),
    "ORT default int4 level 4": ("level4", 4),
    "ORT RTN int4": ("rtn", 4),
    "ORT HQQ int4": ("hqq", 4),
    "ORT GPTQ int4": ("gptq", 4),
    "ORT k-quant int4": ("kquant", 4),
    "ORT default int8": ("default", 8),
    "ORT HQQ int8": ("hqq", 8),
}


def command(name: str, model: Path, samples: Path, result: Path, peers_python: str) -> list[str]:
    """Command by which the contestant `name` quantizes the weights of `model` into `result`.

    graphopt runs in this interpreter, the peers in `peers_python`. `samples` is for those who calibrate.
    """
    if name in OURS:
        precision, with_data, more = OURS[name]
        options = ["--precision", precision, "--block-size", str(BLOCK), "--threads", "1", *more]
        options += ["--data", str(samples)] if with_data else []
        return [sys.executable, "-m", "graphopt", "optimize", str(model), str(result), *options]
    setting, bits = PEERS[name]
    arguments = [str(model), str(samples), str(result), setting, str(bits), str(BLOCK)]
    return [peers_python, "-m", "tools.bench.weights.peer", *arguments]


def bits(name: str) -> int:
    """Bits of a contestant's weights."""
    return PEERS[name][1] if name in PEERS else int(OURS[name][0][3])


ROSTER = Roster(list(OURS), PEERS, command)
