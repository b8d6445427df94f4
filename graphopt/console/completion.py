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
    from graphopt.options import PRECISIONS

    return [name for name in PRECISIONS if name.startswith(incomplete)]


def stores(incomplete: str) -> Iterable[str]:
    """Names for ``--store``."""
    from graphopt.options import STORES

    return [name for name in STORES if name.startswith(incomplete)]


def roundings(incomplete: str) -> Iterable[str]:
    """Names for ``--rounding``."""
    from graphopt.options import ROUNDINGS

    return [name for name in ROUNDINGS if name.startswith(incomplete)]


def ranges(incomplete: str) -> Iterable[str]:
    """Names for ``--ranges``."""
    from graphopt.options import RANGES

    return [name for name in RANGES if name.startswith(incomplete)]


def targets(incomplete: str) -> Iterable[str]:
    """Names for ``--target``."""
    from graphopt.target import TARGETS

    return [name for name in TARGETS if name.startswith(incomplete)]
