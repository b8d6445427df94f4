"""Let every contestant convert each model to fp16, and have the results judged.

Only the standard library is imported here, see `tools.bench.process`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import models
from tools.bench.asking import JudgeError, ask
from tools.bench.conversion import Limits, convert
from tools.bench.roster import Roster, file_name

Facts = dict[str, Any]
JUDGE = "tools.bench.half.judge"


@dataclass(frozen=True)
class Plan:
    """How a comparison is run.

    Attributes:
        contestants: who takes part.
        roster: all of them, with their commands.
        peers_python: interpreter with the peers' packages.
        work: folder for samples and results.
        limits: for one conversion.
        reuse: take a peer's result that an earlier run made of the same model and samples.
        keep: leave the results in the folder.
    """

    contestants: list[str]
    roster: Roster
    peers_python: str
    work: Path
    limits: Limits
    reuse: bool
    keep: bool


def compare(name: str, plan: Plan, known: Facts) -> Facts:
    """All contestants of `plan` on one model; those that only `known` has keep their facts.

    Raises:
        JudgeError: its samples cannot be drawn.
    """
    folder = plan.work / name
    folder.mkdir(parents=True, exist_ok=True)
    about = ask(JUDGE, {"prepare": name, "folder": str(folder)})
    entries = {one: entry(one, name, about, folder, plan) for one in plan.contestants}
    merged = {**known.get("contestants", {}), **entries}
    return {**about, "contestants": {one: merged[one] for one in plan.roster.names if one in merged}}


def entry(contestant: str, name: str, about: Facts, folder: Path, plan: Plan) -> Facts:
    """What one contestant made of one model."""
    model, samples = Path(about["model"]), folder / "samples"
    result = folder / file_name(contestant)
    command = plan.roster.command(contestant, model, samples, result, plan.peers_python)
    reuse = plan.reuse and contestant in plan.roster.peers
    facts = convert(command, [model, *sorted(samples.iterdir())], result, plan.limits, reuse=reuse)
    if not facts["why"]:
        request = {"original": str(model), "result": str(result), "judged": str(folder / "judged")}
        facts |= judged(request | {"dims": models.recipes()[name].shapes}, plan)
    if not plan.keep:
        result.unlink(missing_ok=True)
    return facts


def judged(request: Facts, plan: Plan) -> Facts:
    """The judge's facts, or why there are none."""
    try:
        return ask(JUDGE, request, plan.limits.seconds)
    except JudgeError as error:
        return {"why": str(error)}
