"""The record of one ``optimize``: what was done, on what evidence, what was refused and why."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import graph as g
from graphopt.errors import DataError, UsageError
from graphopt.journal import Journal, Refusal, Rewrite
from graphopt.plain import to_json

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.proof.accuracy import Score
    from graphopt.proof.measure import Comparison
    from graphopt.proof.verdict import Verdict


FORMAT = "graphopt-report-1"


@dataclass(frozen=True)
class Stats:
    """Static facts: nodes (no Constants; subgraphs and function bodies included) and bytes of file."""

    nodes: int
    ops: dict[str, int]
    file_bytes: int
    parameters: int

    @classmethod
    def of(cls, model: Model) -> Stats:
        """Count a model."""
        ops = Counter(node.op_type for node in g.nodes(model.ir) if not g.is_op(node, "Constant"))
        return cls(ops.total(), dict(ops.most_common()), model.file_size(), _parameters(model))


def _parameters(model: Model) -> int:
    """Elements of all initializers and Constant nodes."""
    stored = sum(
        value.const_value.size
        for graph in g.graphs(model.ir)
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    made = (g.constant_node_tensor(node) for node in g.nodes(model.ir) if g.is_op(node, "Constant"))
    return stored + sum(tensor.size for tensor in made if tensor is not None)


@dataclass(frozen=True)
class LeftOut:
    """A rewrite that was taken back, and why: it broke parity, or it did not pay."""

    rewrite: Rewrite
    reason: str


@dataclass(frozen=True)
class LayerReport:
    """One node, or one weight, that lower precision was considered for.

    Attributes:
        name: of its first output value, or of the weight.
        op: its operator, or that of the first node that reads the weight.
        precision: what it computes in, or is stored as, in the result: ``int8``, ``float16``, ...
        sqnr_db: of the model's outputs when this layer alone is in lower precision; None if not measured.
        clipped: share of the calibration's numbers beyond ``low`` and ``high``; None if not known.
        low, high: the range that its output's grid stands for; None if its output is not on a grid.
        method: how that range was chosen, such as ``kl``, or how a weight was rounded; empty if there is
            none.
        fused: whether ONNX Runtime runs it as one integer kernel; None if it is not meant to.
        float_ms, int8_ms: milliseconds of a run, before and after; None if not measured.
        block: how many numbers of a weight share a scale; None if it has none.
        bytes_before, bytes_after: of a weight with its scales; None for a node.
        reason: why it is not in lower precision, or what else is to be known; empty if nothing is.
    """

    name: str
    op: str
    precision: str
    sqnr_db: float | None = None
    clipped: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    fused: bool | None = None
    float_ms: float | None = None
    int8_ms: float | None = None
    block: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class PrunedLayer:
    """One layer, or one group of layers, that pruning was considered for: a row of the ledger.

    Attributes:
        name: of its first output value, its weight, or its group.
        op: its operator, or that of the first layer of the group.
        technique: ``channels``, ``rank``, ``circulant``, ``sparsity`` or ``cluster``.
        kept: what is left, in words, such as ``24 of 64 channels``; empty if it stays as it was.
        error: ‖y' − y‖² / ‖y‖² of its output; with sparsity beside what y varies, with channels expected, of
            all layers that read them; with clusters, and without samples, of its weight. None if not known.
        numbers_before, numbers_after: stored weights; None if not known. Zeros count until they are removed.
        macs_before, macs_after: multiply-accumulates of a run of the first sample; None if not known.
        ms_before, ms_after: milliseconds of a run; None if not measured.
        reason: why it stays as it was, or what else is to be known; empty if nothing is.
    """

    name: str
    op: str
    technique: str
    kept: str = ""
    error: float | None = None
    numbers_before: int | None = None
    numbers_after: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class AccuracyReport:
    """What lower precision or pruning costs in accuracy, on samples that did not calibrate.

    Attributes:
        before, after: the scores of the original and of the result.
        budget: what ``--max-drop`` allows, such as ``1 %``; ``none`` if what was asked for was done at any
            cost.
        achieved: whether the result keeps it.
        reason: how it does or why it does not, in numbers.
        evidence: which samples judged, and how they were kept apart from those that calibrated.
        calibration_samples, evaluation_samples: how many there were of each.
        synthetic: the calibration saw drawn samples, so that ranges need not fit real ones.
        int8_macs: share of the multiply-accumulates in lower precision; None if not known.
    """

    before: Score
    after: Score
    budget: str
    achieved: bool
    reason: str
    evidence: str
    calibration_samples: int
    evaluation_samples: int
    synthetic: bool = False
    int8_macs: float | None = None


@dataclass
class Report:
    """Everything about one run.

    ``evidence`` is ``verified``, ``structural only`` or ``not verified``; ``data_files`` are the names of the
    files beside ``output`` that hold its weights; ``precision`` and ``store`` are what was asked for.
    """

    source: str
    output: str | None
    pipeline: str
    target: str
    evidence: str = "not verified"
    evidence_detail: str = ""
    before: Stats | None = None
    after: Stats | None = None
    verdict: Verdict | None = None
    comparison: Comparison | None = None
    kept_original: str | None = None
    rewrites: list[Rewrite] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    pass_seconds: dict[str, float] = field(default_factory=dict)
    pass_rewrites: dict[str, int] = field(default_factory=dict)
    precision: str | None = None
    store: str | None = None
    accuracy: AccuracyReport | None = None
    layers: list[LayerReport] = field(default_factory=list)
    pruned: list[PrunedLayer] = field(default_factory=list)
    data_files: list[str] = field(default_factory=list)

    def absorb(self, journal: Journal, model: Model) -> None:
        """Take over what the journal of the kept result says; refusals only of what the model still has."""
        present = {g.label(node) for node in g.nodes(model.ir)} | set(model.ir.graph.initializers)
        self.rewrites = list(journal.rewrites)
        self.refusals = [refusal for refusal in journal.refusals if refusal.where in present]
        self.notes = [*self.notes, *journal.notes]
        self.pass_seconds = dict(journal.seconds)
        self.pass_rewrites = dict(journal.passes)

    def rule_counts(self) -> Counter[str]:
        """Rewrites per rule."""
        return Counter(rewrite.rule for rewrite in self.rewrites)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plain: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        return plain

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        from graphopt.storage.files import write_text

        write_text(path, to_json(self.to_dict()) + "\n")


def decisions(path: Path) -> tuple[str, frozenset[Rewrite]]:
    """The pipeline and the rewrites of an earlier report, for ``--replay``.

    Raises:
        UsageError: there is no such file.
        DataError: the file is no report of graphopt.
    """
    if not path.is_file():
        raise UsageError(f"no such report: {path}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}, not {FORMAT!r}")
        return stored["pipeline"], frozenset(Rewrite(**rewrite) for rewrite in stored["rewrites"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"'{path}' is no graphopt report ({why}); --replay takes a file that --report wrote"
        ) from None
