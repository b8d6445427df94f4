"""Which weights are computed with as blocks of integers: those whose kernels are no slower than floats.

All others are made float when the model is loaded, which takes the same room in the file and no time in a
run. So the model with no kernel at all is as fast as the exact result, and the choice can only gain: all
kernels, or those that single nodes' times speak for, whichever is measured to be fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from graphopt.model import Model
from graphopt.precision import Task, Trial
from graphopt.proof.profile import Profile
from graphopt_passes.quantize.draft import Draft, profiles_of
from graphopt_passes.weights.build import Site

Names = frozenset[str]


def fastest(task: Task, sites: Collection[Site], build: Callable[[Names], Model]) -> Names:
    """The weights whose kernels are worth it; all that have one if nothing can be measured.

    Args:
        task: what to work with.
        sites: the weights.
        build: makes the model that computes with these as integers.
    """
    every = frozenset(site.name for site in sites if site.kernel)
    if not task.measured or not every:
        return every
    task.progress("measuring where integers pay")
    floats, integers = profiles_of(task, task.model), profiles_of(task, build(every))
    chosen = frozenset(site.name for site in sites if site.kernel and _pays(site, floats, integers))
    tried = {names: _measure(task, build(names)) for names in dict.fromkeys((every, chosen)) if names}
    kept = {names: trial for names, trial in tried.items() if not _is_slower(trial)}
    return max(kept, key=lambda names: kept[names].ratio, default=frozenset())


def _pays(site: Site, floats: Sequence[Profile], integers: Sequence[Profile]) -> bool:
    """Whether a weight's readers take no longer, as shares of the float model's time over all workloads."""
    share = 0.0
    for before, after in zip(floats, integers, strict=True):
        saved = sum(before.units.get(name, 0.0) - after.units.get(name, 0.0) for name in site.nodes)
        share += saved / (before.seconds or 1.0)
    return share >= 0


def _measure(task: Task, model: Model) -> Trial:
    draft = Draft(task, model, frozenset())
    trial = task.compare(task.float_path, draft.path)
    draft.discard()
    return trial


def _is_slower(trial: Trial) -> bool:
    return any(found.verdict == "slower" for found in trial.comparisons)
