"""What is wrong with options that do not go together, each in one line with a way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.choices import (
    BLOCK_SIZES,
    CALIBRATION_MEMORY,
    HALVES,
    PRECISIONS,
    RANGES,
    ROUNDINGS,
    STORES,
)
from graphopt.pruning import CIRCULANTS, CLUSTERS, OBJECTIVES, SELECTIONS

if TYPE_CHECKING:
    from graphopt.options import Options


def conflicts(options: Options) -> Iterator[str]:
    """What is wrong with the options of pruning and of lower precision, if anything."""
    yield from _pruning(options)
    if options.store is not None and options.store not in STORES:
        yield f"unknown --store '{options.store}'; choose one of {', '.join(STORES)}"
    if options.precision is None:
        yield from _without_precision(options)
    elif options.precision not in PRECISIONS:
        yield f"unknown precision '{options.precision}'; choose one of {', '.join(PRECISIONS)}"
    else:
        yield from _precision(options, options.precision)
    if isinstance(options.eval, str) and ":" not in options.eval and not Path(options.eval).exists():
        yield f"no such --eval: {options.eval} (an .npz file, a folder, or package.module:function)"


def _pruning(options: Options) -> Iterator[str]:
    if options.objective not in OBJECTIVES:
        yield f"unknown --objective '{options.objective}'; choose one of {', '.join(OBJECTIVES)}"
    if options.select not in SELECTIONS:
        yield f"unknown --select '{options.select}'; choose one of {', '.join(SELECTIONS)}"
    for name, given, known in (
        ("--cluster", options.cluster, CLUSTERS),
        ("--circulant", options.circulant, CIRCULANTS),
    ):
        if given is not None and given not in known:
            yield f"{name} {given} is none of {', '.join(map(str, known))}"
    if options.cluster is not None and options.precision is not None:
        yield (
            f"--cluster and --precision {options.precision} both decide how weights are stored; leave one out"
        )
    asked = {*options.amounts, *(["circulant"] if options.circulant is not None else [])}
    if not asked & {"channels", "sparsity"}:
        fitting = {"--select": options.select != "obs", "--no-refit": not options.refit}
        yield from _needless("--channels or --sparsity", fitting)
    if options.select == "lasso" and "channels" not in asked:
        yield "--select lasso chooses channels: it needs --channels"
    if not asked & {"channels", "rank", "circulant"}:
        objective = {"--objective": options.objective != "latency"}
        yield from _needless("--channels, --rank, or --circulant of graphopt prune", objective)
    if options.prunes and not options.verify:
        yield from _unjudged(options)


def _unjudged(options: Options) -> Iterator[str]:
    """What asks for a budget to be kept, though nothing is judged."""
    auto = [f"--{name} auto" for name, amount in options.amounts.items() if amount.share is None]
    for asked in (["--max-drop"] if options.max_drop is not None else []) + auto:
        yield f"{asked} keeps a budget, which --no-verify does not judge; leave one of them out"


def _calibrating(options: Options) -> dict[str, bool]:
    return {
        "--calibration-memory": options.calibration_memory != CALIBRATION_MEMORY,
        "--calibration-limit": options.calibration_limit is not None,
    }


def _ranging(options: Options) -> dict[str, bool]:
    return {
        "--ranges": options.ranges != "auto",
        "--save-calibration": options.save_calibration is not None,
        "--calibration": options.calibration is not None,
    }


def _rounding(options: Options) -> dict[str, bool]:
    return {"--block-size": options.block_size is not None, "--rounding": options.rounding != "auto"}


def _needless(needed: str, given: Mapping[str, bool]) -> Iterator[str]:
    yield from (f"{name} needs {needed}" for name, is_given in given.items() if is_given)


def _useless(why: str, given: Mapping[str, bool]) -> Iterator[str]:
    yield from (f"{name}: {why}; leave it out" for name, is_given in given.items() if is_given)


def _without_precision(options: Options) -> Iterator[str]:
    if options.convert_io:
        yield f"--convert-io needs --precision {' or '.join(HALVES)}"
    yield from _needless("--precision", _ranging(options) | _rounding(options))
    if not options.prunes:
        judging = {"--eval": options.eval is not None, "--max-drop": options.max_drop is not None}
        yield from _needless("--precision, or pruning such as --channels", _calibrating(options))
        if options.store is None:
            yield from _needless("--precision, --store, or pruning such as --channels", judging)
    yield from _limits(options)


def _precision(options: Options, precision: str) -> Iterator[str]:
    needs = PRECISIONS[precision]
    if options.ranges not in RANGES:
        yield f"unknown --ranges '{options.ranges}'; choose one of {', '.join(RANGES)}"
    if options.convert_io and precision not in HALVES:
        yield f"--convert-io needs --precision {' or '.join(HALVES)}"
    if needs.weights:
        yield from _rounding_conflicts(options)
    else:
        yield from _useless(f"{precision} has no use for it", _rounding(options))
    if not needs.calibrates:
        given = _ranging(options) | ({} if options.prunes else _calibrating(options))
        yield from _useless(f"{precision} calibrates nothing", given)
    else:
        yield from _calibration_conflicts(options, precision)


def _rounding_conflicts(options: Options) -> Iterator[str]:
    if options.rounding not in ROUNDINGS:
        yield f"unknown --rounding '{options.rounding}'; choose one of {', '.join(ROUNDINGS)}"
    if options.block_size not in (None, *BLOCK_SIZES):
        yield f"--block-size {options.block_size} is none of {', '.join(map(str, BLOCK_SIZES))}"
    if options.rounding in {"gptq", "awq"} and options.data is None:
        needs = f"--rounding {options.rounding} fits weights to samples"
        yield f"{needs}: give them with --data, or use hqq, which needs none"


def _calibration_conflicts(options: Options, precision: str) -> Iterator[str]:
    needs = PRECISIONS[precision]
    if not needs.ranges:
        yield from _useless(f"{precision} chooses no ranges", _ranging(options))
    if options.calibration is not None:
        if options.save_calibration is not None:
            yield "--save-calibration has nothing to save with --calibration; leave one of them out"
        if not options.calibration.is_file():
            yield f"no such calibration: {options.calibration}"
    if options.data is None and needs.data:
        yield (
            f"--precision {precision} calibrates on your samples: give them with --data ('synthetic'"
            " draws some, but says little about accuracy), or use --precision int8-dynamic, which needs none"
        )
    yield from _limits(options)


def _limits(options: Options) -> Iterator[str]:
    if options.calibration_memory <= 0:
        yield "--calibration-memory must be positive"
    if options.calibration_limit is not None and options.calibration_limit < 1:
        yield "--calibration-limit must be at least 1"
