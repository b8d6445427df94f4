"""Which samples calibrate and which judge: no sample ever does both.

Samples are told apart by a hash of their inputs, taken in one pass that keeps nothing else. Every later
pass checks that it gets the same samples, so that a function that shuffles cannot bring a held-out sample
into calibration.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError, UsageError
from graphopt.progress import Progress, silent
from graphopt.proof.digests import Digest, chosen, digests
from graphopt.proof.labels import Labels
from graphopt.proof.usermetric import UserMetric
from graphopt.samples import memory
from graphopt.samples.inputs import InputSpec
from graphopt.samples.sampling import Samples, Source, given
from graphopt.samples.userdata import LABELS, load_function, reader

HELD_OUT_EVERY = 4
MOST_HELD_OUT = 128
SYNTHETIC_COUNT = 64
_SHOWN = 3
Evaluation = str | Path | Mapping[str, Any] | Callable[..., Any] | None
_ARRAYS = "eval"


@dataclass(frozen=True)
class Division:
    """The samples of one run.

    Attributes:
        calibration: those that ranges, weights and biases are computed from.
        calibration_count: how many these are; 0 if nothing is calibrated.
        evaluation: those that judge.
        evaluation_count: how many these are.
        metric: what else judges; None without ``--eval``, or if its file has no labels.
        evidence: one line on what judges and how the samples were kept apart.
    """

    calibration: Samples
    calibration_count: int
    evaluation: Samples
    evaluation_count: int
    metric: Labels | UserMetric | None
    evidence: str


def gather(
    model: ir.Model, data: Source | None, shapes: Sequence[str] = (), seed: int = 0, limit: int | None = None
) -> Samples:
    """All samples of ``--data``, or the first ``limit``; without data 64 synthetic ones.

    Raises:
        UsageError: there is no such data, or a shape does not fit the model.
    """
    data = given(data)
    if data is not None:
        return Samples.from_user(data, model, limit)
    from graphopt.samples.synthetic import Drawer, parse_shapes

    drawer = Drawer(model, parse_shapes(shapes), seed, override=False)
    return Samples.synthetic(drawer, SYNTHETIC_COUNT if limit is None else limit)


def divide(
    samples: Samples,
    evaluation: Evaluation,
    specs: Sequence[InputSpec],
    *,
    calibrate: bool = True,
    progress: Progress = silent,
) -> Division:
    """Decide which samples calibrate and which judge.

    Args:
        samples: those of ``--data``, all of them; the same on every iteration.
        evaluation: ``--eval``: an .npz file with an array per input and, for a metric, ``labels``, or a dict
            of such arrays; a folder of samples; ``module:function``, or a function. With a function, or
            nothing, every fourth of ``samples`` is held out, at most 128.
        specs: the model's inputs.
        calibrate: False uses all of ``samples`` to judge if ``evaluation`` gives none.
        progress: told how many samples were looked at.

    Raises:
        UsageError: ``evaluation`` is neither a file, nor a folder, nor a function.
        DataError: a sample does not fit the model, is in both sets, or there are too few.
    """
    if isinstance(evaluation, str | Path) and Path(evaluation).exists():
        path = Path(evaluation)
        read = Samples(str(path), reader(str(path), specs))
        return _apart(samples, read, lambda count: _labels(path, count, specs), calibrate, progress)
    if isinstance(evaluation, Mapping):
        held = Samples(_ARRAYS, memory.reader(evaluation, specs, _ARRAYS))
        return _apart(
            samples, held, lambda count: _given(evaluation, count, _ARRAYS, specs), calibrate, progress
        )
    metric = None if evaluation is None else _function(evaluation, specs)
    known = digests(samples, progress)
    judges = _judges(known, samples.source) if calibrate else [True] * len(known)
    judging, calibration = (chosen(samples, known, flags) for flags in (judges, [not one for one in judges]))
    counts = judges.count(False), judges.count(True)
    evidence = f"{samples.describe(counts[1])}{', held out of calibration' if calibrate else ''}"
    if metric is not None:
        evidence += f"; that the samples of {metric.name} did not calibrate cannot be checked"
    return Division(calibration, counts[0], judging, counts[1], metric, evidence)


def _apart(
    samples: Samples,
    judging: Samples,
    labels_of: Callable[[int], Labels | None],
    calibrate: bool,
    progress: Progress,
) -> Division:
    """Samples of their own judge."""
    judged = digests(judging, progress)
    labels = labels_of(len(judged))
    known = digests(samples, progress) if calibrate else []
    if calibrate and not known:
        raise DataError(f"{samples.source} holds no sample to calibrate on")
    _refuse_overlap(samples.source, known, judging.source, judged)
    evidence = judging.describe(len(judged)) + (", none of which calibrated" if calibrate else "")
    return Division(
        chosen(samples, known) if calibrate else Samples(samples.source, lambda: iter(())),
        len(known),
        chosen(judging, judged),
        len(judged),
        labels,
        evidence,
    )


def _given(arrays: Mapping[str, Any], count: int, source: str, specs: Sequence[InputSpec]) -> Labels | None:
    """The labels of ``count`` samples among arrays; one that is an input of the model is none."""
    if LABELS not in arrays or any(spec.name == LABELS for spec in specs):
        return None
    return Labels.read(np.asarray(arrays[LABELS]), count, source)


def _labels(path: Path, count: int, specs: Sequence[InputSpec]) -> Labels | None:
    """The labels of ``count`` samples in a file, if it is one."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            return _given(arrays, count, str(path), specs)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: the array '{LABELS}' cannot be read: {error}") from None


def _function(evaluation: str | Path | Callable[..., Any], specs: Sequence[InputSpec]) -> UserMetric:
    if callable(evaluation):
        return UserMetric(evaluation, getattr(evaluation, "__qualname__", repr(evaluation)), specs)
    module, separator, name = str(evaluation).partition(":")
    if not isinstance(evaluation, str | Path) or not separator or "/" in module:
        told = evaluation if isinstance(evaluation, str | Path) else type(evaluation).__name__
        kinds = "an .npz file, a folder, package.module:function, or in Python a dict of arrays"
        raise UsageError(f"no such --eval: {told} ({kinds})")
    return UserMetric(load_function(module, name), str(evaluation), specs)


def _refuse_overlap(source: str, known: Sequence[Digest], judge: str, judged: Sequence[Digest]) -> None:
    """No sample may be in both sets."""
    places = {digest: index for index, digest in enumerate(known)}
    both = [(places[digest], index) for index, digest in enumerate(judged) if digest in places]
    if both:
        shown = ", ".join(f"{a} = {b}" for a, b in both[:_SHOWN]) + (", …" if len(both) > _SHOWN else "")
        raise DataError(
            f"{len(both)} of {len(judged)} samples of {judge} are in {source} too (sample {shown});"
            " what calibrates must not judge: remove them from one of the two"
        )


def _judges(known: Sequence[Digest], source: str) -> list[bool]:
    """Whether each sample is held out: every fourth that is new; one that comes again goes where it was."""
    sides: dict[Digest, bool] = {}
    for digest in known:
        turn, place = divmod(len(sides), HELD_OUT_EVERY)
        sides.setdefault(digest, place == HELD_OUT_EVERY - 1 and turn < MOST_HELD_OUT)
    if len(sides) < 2:
        raise DataError(
            f"{source} holds {'only one sample' if sides else 'no sample'}: calibration needs one and judging"
            " another; give more, or others with --eval"
        )
    if not any(sides.values()):
        sides[next(reversed(sides))] = True
    return [sides[digest] for digest in known]
