"""Cut random channels out of real models and compare with the oracle; say what cannot be cut, and why.

python -m tools.channels                     # every real model in the cache, 25 % and 50 % removed
python -m tools.channels minilm --exact      # after the exact passes, as a pruning stage sees it
python -m tools.channels minilm --groups     # its groups and its frozen channels

Exit codes: 0 all results are right, 1 some are not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt.proof.tolerance import SPREAD_FACTOR
from graphopt_passes.axes import Analysis, groups
from tools import models
from tools.bench import drawn, options
from tools.channels import oracle

TOLERANCE = 1e-5


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.channels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", default=options.real_models(), metavar="NAME")
    parser.add_argument("--removed", nargs="+", type=float, default=[0.25, 0.5], metavar="SHARE")
    parser.add_argument("--exact", action="store_true", help="after the default exact passes")
    parser.add_argument("--groups", action="store_true", help="list groups and frozen channels")
    chosen = parser.parse_args()
    return max([check(name, chosen) for name in chosen.models], default=0)


def check(name: str, chosen: argparse.Namespace) -> int:
    """Check one model, print a line for each share."""
    model = load(name, chosen.exact)
    start = time.perf_counter()
    analysis = groups(model)
    print(f"{name}: {summary(analysis)}; analyzed in {time.perf_counter() - start:.2f} s", flush=True)
    describe(analysis) if chosen.groups else explain(analysis)
    feeds, wrong = next(drawn.feeds(name, 1, seed=0)), 0
    for removed in chosen.removed if analysis.groups else ():
        facts = oracle.check(model, oracle.drawn(analysis, removed, seed=0), feeds)
        wrong |= not facts.error <= max(TOLERANCE, SPREAD_FACTOR * facts.noise)
        found = f"error {facts.error:.1e}, noise {facts.noise:.1e}, {share(facts)} of the file"
        print(f"  {removed:.0%} removed: {found}", flush=True)
    return int(wrong)


def load(name: str, exact: bool) -> Model:
    """A model of IR version 4 or later."""
    if exact:
        import graphopt

        result = graphopt.optimize(models.path(name), verify=False, measure=False)
        model = result.model
    else:
        model = Model.load(models.path(name))
    to_ir4(model)
    return model


def summary(analysis: Analysis) -> str:
    units = sum(group.width for group in analysis.groups)
    frozen = sum(found.width for found in analysis.frozen)
    return f"{len(analysis.groups)} groups of {units} units, {frozen} channels frozen"


def share(facts: oracle.Facts) -> str:
    return f"{facts.bytes[1] / facts.bytes[0]:.0%}"


def describe(analysis: Analysis) -> None:
    for group in analysis.groups:
        consumers = ", ".join(sorted({member.port.node.op_type for member in group.consumers if member.port}))
        print(f"  {group.name}: {group.width} units, {len(group.members)} axes, read by {consumers}")
    for found in analysis.frozen:
        print(f"  {found.value.name}, {found.width} frozen: {found.reason}")


def explain(analysis: Analysis) -> None:
    """The reasons, without names, by the number of channels."""
    counts: Counter[str] = Counter()
    for found in analysis.frozen:
        counts[found.reason.split(";")[0]] += found.width
    for reason, count in counts.most_common(4):
        print(f"  frozen {count}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
