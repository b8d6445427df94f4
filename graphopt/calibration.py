"""Statistics that can be saved and used again, as long as model and data are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graphopt import graph as g
from graphopt.activations import Collector, Request, Statistics
from graphopt.errors import DataError, UsageError
from graphopt.model import Model
from graphopt.runtime.accumulators import Accumulator, Extent, Histogram
from graphopt.runtime.grid_errors import GridErrors, Steps
from graphopt.runtime.means import Mean
from graphopt.runtime.moments import Moments, Patches
from graphopt.runtime.values import Tensor, Value
from graphopt.samples.inputs import check, inputs_of
from graphopt.storage.files import Staged, write_all
from graphopt.storage.weights import chunks

_FORMAT = 1
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Extent, Histogram, Mean, Moments, Patches, GridErrors, Steps)
}


@dataclass(frozen=True)
class Fingerprint:
    """What statistics belong to.

    Attributes:
        graph: digest of all but the weights' content.
        weights: digest of the weights.
        source: where the samples came from, in words.
        count: how many samples there were.
        data: digest of the samples.
    """

    graph: str
    weights: str
    source: str
    count: int
    data: str

    @classmethod
    def of(cls, model: Model, samples: Iterable[Mapping[str, Any]]) -> Fingerprint:
        """The fingerprint of a model and of samples, each of which is read once.

        Raises:
            DataError: a sample does not fit the model.
        """
        digest, count = hashlib.sha256(), 0
        specs = inputs_of(model.ir)
        for count, sample in enumerate(samples, 1):
            for name, value in sorted(check(specs, sample, f"sample {count - 1}").items()):
                _feed(digest, name, value)
        source = str(getattr(samples, "source", "samples"))
        return cls(graph_digest(model), weights_digest(model), source, count, digest.hexdigest())

    def differences(self, other: Fingerprint) -> str:
        """What is not the same: the model's graph, its weights, the samples; empty if nothing."""
        parts = [("the model's graph", self.graph == other.graph)]
        parts += [("the model's weights", self.weights == other.weights)]
        parts += [("the data", (self.count, self.data) == (other.count, other.data))]
        return ", ".join(name for name, same in parts if not same)


class Calibration:
    """Statistics of one model on one set of samples: gathered when first asked for, kept, saved.

    Args:
        model: the model, as it was when the calibration began.
        samples: re-iterable, see :meth:`graphopt.activations.Collector.collect`.
        collector: gathers.
        known: statistics that are there already.
    """

    def __init__(
        self,
        model: Model,
        samples: Iterable[Mapping[str, Any]],
        collector: Collector,
        known: Statistics | None = None,
    ) -> None:
        self._model, self._samples, self._collector = model, samples, collector
        self.statistics = known or Statistics()

    def gather(self, requests: Iterable[Request]) -> Statistics:
        """The statistics asked for; only those that are not known yet take passes over the samples.

        Raises:
            GraphoptError: see :meth:`graphopt.activations.Collector.collect`.
        """
        known, wanted = self.statistics, list(dict.fromkeys(requests))
        missing = [one for one in wanted if one not in known.found and one not in known.absent]
        if missing:
            new = self._collector.collect(self._model, missing, self._samples)
            known.found.update(new.found)
            known.absent.update(new.absent)
            known.samples = max(known.samples, new.samples)
        found = {request: known.found[request] for request in wanted if request in known.found}
        absent = {request: known.absent[request] for request in wanted if request in known.absent}
        return Statistics(found, absent, known.samples)

    def save(self, path: str | Path) -> None:
        """Write ``path``, a JSON file, and the arrays beside it as ``path``.npz; both appear whole.

        Raises:
            UsageError: the folder does not exist.
            SystemRefusedError: the system refuses, for instance because the disk is full.
        """
        save(Path(path), self.statistics, Fingerprint.of(self._model, self._samples))

    def load(self, path: str | Path) -> None:
        """Add what was saved.

        Raises:
            UsageError: no such file.
            DataError: it is damaged, or belongs to another model or other samples; the message says which.
        """
        statistics, saved = load(Path(path))
        if differs := saved.differences(Fingerprint.of(self._model, self._samples)):
            raise DataError(f"{path} does not fit: {differs} changed since it was made; calibrate again")
        self.statistics.found.update(statistics.found)
        self.statistics.absent.update(statistics.absent)
        self.statistics.samples = max(self.statistics.samples, statistics.samples)


def save(path: Path, statistics: Statistics, fingerprint: Fingerprint) -> None:
    """Write statistics as JSON and .npz; see :meth:`Calibration.save`."""
    arrays: dict[str, np.ndarray] = {}
    entries = [_entry(request, one, arrays) for request, one in statistics.found.items()]
    absent = [{"value": r.value, "kind": _encode(r.kind), "why": why} for r, why in statistics.absent.items()]
    told = {
        "format": _FORMAT,
        "fingerprint": asdict(fingerprint),
        "samples": statistics.samples,
        "found": entries,
        "absent": absent,
    }

    def write_arrays(file: BinaryIO) -> None:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    with Staged(path) as staged:
        staged.write(write_arrays, f"{path.name}.npz")
        staged.write(lambda file: write_all(file, [json.dumps(told, indent=1).encode()]))
        staged.commit()


def load(path: Path) -> tuple[Statistics, Fingerprint]:
    """Read what ``save`` wrote; see :meth:`Calibration.load`."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        told = json.loads(path.read_text())
        with np.load(path.with_name(f"{path.name}.npz")) as arrays:
            found = dict(_restored(entry, arrays) for entry in told["found"])
        absent = {Request(one["value"], _decode(one["kind"])): one["why"] for one in told["absent"]}
        return Statistics(found, absent, told["samples"]), Fingerprint(**told["fingerprint"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} holds no readable calibration: {error}; calibrate again") from None


def graph_digest(model: Model) -> str:
    """Digest of everything but the weights' content."""
    return hashlib.sha256(model.skeleton().SerializeToString(deterministic=True)).hexdigest()


def weights_digest(model: Model) -> str:
    """Digest of all weights, read piece by piece."""
    digest = hashlib.sha256()
    for graph in g.graphs(model.ir):
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            for piece in chunks(value.const_value) if value.const_value is not None else ():
                digest.update(piece)
    return digest.hexdigest()


def _feed(digest: Any, name: str, value: Value) -> None:
    tensors = value if isinstance(value, list) else [value]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor!r}".encode())
            continue
        digest.update(f"{name} {tensor.elem_type} {tensor.shape}".encode())
        digest.update(repr(tensor.data).encode() if isinstance(tensor.data, tuple) else tensor.raw())


# One request with its result: small fields in JSON, arrays in the .npz under the entry's number.


def _entry(request: Request, one: Accumulator, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "value": request.value,
        "kind": _encode(request.kind),
        "arrays": {},
        "numbers": {},
    }
    for name, content in vars(one).items():
        if isinstance(content, np.ndarray):
            entry["arrays"][name] = key = str(len(arrays))
            arrays[key] = content
        elif isinstance(content, int | float):
            entry["numbers"][name] = content
    return entry


def _restored(entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[Request, Accumulator]:
    request = Request(entry["value"], _decode(entry["kind"]))
    one = request.kind.start()
    for name, content in entry["numbers"].items():
        setattr(one, name, content)
    for name, key in entry["arrays"].items():
        setattr(one, name, arrays[key])
    return request, one


def _encode(content: Any) -> Any:
    """A kind as JSON: a dataclass is a dict with its name."""
    if dataclasses.is_dataclass(content):
        fields = {f.name: _encode(getattr(content, f.name)) for f in dataclasses.fields(content)}
        return {"is": type(content).__name__} | fields
    return [_encode(item) for item in content] if isinstance(content, tuple) else content


def _decode(content: Any) -> Any:
    if isinstance(content, dict):
        fields = {name: _decode(item) for name, item in content.items() if name != "is"}
        return _KINDS[content["is"]](**fields)
    return tuple(_decode(item) for item in content) if isinstance(content, list) else content
