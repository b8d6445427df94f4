"""How much accuracy each layer costs: the noise at the outputs when it alone computes on integers.

Errors of different layers are nearly independent, so their noise powers add up (Zhou et al. 2018), which is
what makes the search for the best placement a minimum cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from graphopt.errors import WorkerError
from graphopt.precision import Task
from graphopt.proof.accuracy import NEGLIGIBLE, Score
from graphopt.proof.evaluation import HeldOut
from graphopt.samples.sampling import Samples
from graphopt_passes.quantize.draft import Draft

SAMPLES = 8
MOST_SECONDS = 120.0
UNUSABLE = 1e12
"""The noise of what does not run: more than all others together."""

_NOISE_OF_NOTHING = 1e-12
_SHORTEST_S = 1e-6


def _ignored(name: str, reason: str) -> None:
    pass


def sensitivities(
    task: Task,
    build: Callable[[str], Draft],
    layers: Sequence[str],
    refuse: Callable[[str, str], None] = _ignored,
    samples: Samples | None = None,
) -> dict[str, float]:
    """Noise power over signal power by layer, on samples of the calibration if there is one.

    Args:
        task: what to work with.
        build: makes the draft with one layer on integers.
        layers: their names. Those that there was no time for get the median of the others.
        refuse: told of each layer with which the model does not run, and why; it gets :data:`UNUSABLE`.
        samples: to judge on where others were fitted to; the first eight at most, and fewer if runs are long.
    """
    if samples is None:
        samples = task.division.calibration if task.division.calibration_count else task.division.evaluation
    judge = HeldOut(task.worker, task.float_path, samples, None, task.target, task.options.threads)
    start = time.monotonic()
    judge = _affordable(judge.first(SAMPLES), len(layers))
    found: dict[str, float] = {}
    for done, name in enumerate(layers):
        task.progress("measuring what each layer costs in accuracy", done, len(layers))
        if time.monotonic() - start > MOST_SECONDS:
            break
        draft = build(name)
        try:
            found[name] = noise(judge.score(draft.path))
        except WorkerError as error:
            found[name] = UNUSABLE
            refuse(name, f"the model does not run if it alone is changed: {error}")
        finally:
            draft.discard()
    known = sorted(power for power in found.values() if power < UNUSABLE)
    middle = known[len(known) // 2] if known else 0.0
    return {name: found.get(name, middle) for name in layers}


def _affordable(judge: HeldOut, layers: int) -> HeldOut:
    """Judges on as many samples as there is time for with all layers: some samples are large batches."""
    start = time.monotonic()
    most = judge.reference.samples
    seconds = max((time.monotonic() - start) * layers, _SHORTEST_S)
    affordable = max(1, int(most * MOST_SECONDS / seconds))
    return judge if affordable >= most else judge.first(affordable)


def noise(score: Score) -> float:
    """Noise power over signal power of a typical sample."""
    if score.typical_db is None:
        return _NOISE_OF_NOTHING
    return float(max(10 ** (-score.typical_db / 10) - NEGLIGIBLE, _NOISE_OF_NOTHING))


def decibels(power: float) -> float:
    """The signal to noise ratio of a noise power over signal power."""
    return -10 * math.log10(power)


def blame(power: float, change: str = "is int8") -> str:
    """Why a layer with this noise stays as it is."""
    if power >= UNUSABLE:
        return f"the model does not run if it alone {change}"
    return f"costs accuracy: {decibels(power):.1f} dB if it alone {change}"
