"""Inputs drawn by the shapes, ranges and values of a recipe, for real models without data of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from tools import models
from tools.bench.judge import Feeds, draw_one, inputs


def feeds(name: str, count: int, seed: int, *, varied: bool = False) -> Iterator[Feeds]:
    """Samples for the model `name`; `varied` takes the recipe's other shapes of its dynamic inputs."""
    recipe = models.recipes()[name]
    shapes = recipe.shapes | (recipe.varied if varied else {})
    request = {"ranges": recipe.ranges, "values": recipe.values}
    kinds = dtypes(name)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {one: draw_one(request, one, tuple(shape), kinds[one], rng) for one, shape in shapes.items()}


def dtypes(name: str) -> dict[str, np.dtype[Any]]:
    """Element type of each input of a model."""
    model = onnx.load(models.path(name), load_external_data=False)
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in inputs(model)
    }
