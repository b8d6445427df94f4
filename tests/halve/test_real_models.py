"""Real models in the cache, but for the largest: half, valid, loaded, finite, near to what they were."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.activations import Collector
from graphopt.legacy import to_ir4
from graphopt.model import Model
from graphopt.pipeline import Run
from graphopt.proof.evaluation import HeldOut
from graphopt.runtime.worker import Worker
from graphopt.samples.sampling import Samples
from graphopt.target import CPU, REFERENCE
from graphopt_passes.halve.convert import halve
from graphopt_passes.halve.hazards import hazards, requests, sizes
from graphopt_passes.halve.masks import soften
from tests.halve.support import complaint
from tests.support import serialized
from tools import models

LEAST_DB = {"float16": 20.0, "bfloat16": 3.0}  # bfloat16 has 8 bits, and no budget is kept here
SMALL = 16 << 20  # bytes: larger ones, and those with drawn weights, take minutes


def cached() -> list[str]:
    folder = models.cache_folder()
    paths = {
        name: models.path(name) if recipe.package is None else folder / f"{name}.onnx"
        for name, recipe in models.recipes().items()
    }
    known = [name for name, path in paths.items() if path.exists() and path.stat().st_size < SMALL]
    return [name for name in known if models.recipes()[name].seed is None]


ON_INTEGERS = ("ddddocr_old",)  # all of its products are of integers; no Cast between them is worth it


def samples(name: str, model: Model) -> Samples:
    """Three samples of the recipe's shapes."""
    recipe, inputs = models.recipes()[name], {value.name: value for value in model.ir.graph.inputs}

    def draw() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        while True:
            yield {key: one(rng, key, shape) for key, shape in recipe.shapes.items()}

    def one(rng: np.random.Generator, key: str, shape: list[int]) -> np.ndarray[Any, Any]:
        dtype = inputs[key].dtype.numpy()
        if key in recipe.values:
            return np.full(shape, recipe.values[key], dtype)
        if dtype.kind == "f":
            return np.asarray(rng.standard_normal(shape)).astype(dtype)
        return rng.integers(*recipe.ranges.get(key, (0, 2)), size=shape).astype(dtype)

    return Samples("drawn", lambda: itertools.islice(draw(), 3))


@pytest.mark.parametrize("name", cached())
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_real_model_is_half_and_sound(name: str, half: str, worker: Worker) -> None:
    original = Model.load(models.path(name))
    model, run = original.clone(), Run(CPU, worker)
    to_ir4(model)
    given = samples(name, model)
    feeds = list(given)
    soften(model, run, half, Collector(worker).collect(model, requests(model), feeds))
    statistics = Collector(worker).collect(model, requests(model), feeds)
    kept = hazards(model, run, half, statistics)
    rounded = model.clone()
    halve(rounded, Run(CPU, worker), half, kept, sizes=sizes(statistics), emulate=True)
    found = halve(model, Run(CPU, worker), half, kept, sizes=sizes(statistics))
    proto = serialized(model)
    onnx.checker.check_model(proto, full_check=True)
    assert complaint(proto) == ""
    if half == "float16":
        with worker.opened(worker.pool.write(model), REFERENCE, 1):
            pass  # it loads
    judge = HeldOut(worker, worker.pool.write(original), given, target=REFERENCE, threads=1)
    score = judge.score(worker.pool.write(rounded))
    assert all(one.sqnr_db is None or one.sqnr_db > LEAST_DB[half] for one in score.outputs)
    assert found.nodes or name in ON_INTEGERS
