"""What the shell may complete: names of passes, and values of options.

Modules are imported when a name is asked for, so that the command line starts at once.
"""

from __future__ import annotations

from collections.abc import Iterable


def pass_names(incomplete: str) -> Iterable[str]:
    """Completes the last name of a list of passes."""
    from graphopt import registry

    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in registry.builtin() if name.startswith(last)]


def precisions(incomplete: str) -> Iterable[str]:
    """Names for ``--precision``."""
    from graphopt.choices import PRECISIONS

    return _starting(incomplete, PRECISIONS)


def stores(incomplete: str) -> Iterable[str]:
    """Names for ``--store``."""
    from graphopt.choices import STORES

    return _starting(incomplete, STORES)


def roundings(incomplete: str) -> Iterable[str]:
    """Names for ``--rounding``."""
    from graphopt.choices import ROUNDINGS

    return _starting(incomplete, ROUNDINGS)


def ranges(incomplete: str) -> Iterable[str]:
    """Names for ``--ranges``."""
    from graphopt.choices import RANGES

    return _starting(incomplete, RANGES)


def objectives(incomplete: str) -> Iterable[str]:
    """Names for ``--objective``."""
    from graphopt.pruning import OBJECTIVES

    return _starting(incomplete, OBJECTIVES)


def selections(incomplete: str) -> Iterable[str]:
    """Names for ``--select``."""
    from graphopt.pruning import SELECTIONS

    return _starting(incomplete, SELECTIONS)


def targets(incomplete: str) -> Iterable[str]:
    """Names for ``--target``."""
    from graphopt.target import TARGETS

    return _starting(incomplete, TARGETS)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that begin with what was typed."""
    return [name for name in names if name.startswith(incomplete)]
