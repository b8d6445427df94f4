"""One worker for all tests of pruning, and images that are few enough to be judged on again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.conftest import worker
from tools import models

__all__ = ["worker"]

Images = dict[str, Any]
FOLDER = models.RECIPES.parent


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Options: 200 images of Fashion-MNIST to fit to and 400 with labels that judge; no times."""
    path = tmp_path_factory.mktemp("images") / "test.npz"
    with np.load(FOLDER / "fashion_test.npz") as test:
        np.savez(path, **{name: array[:400] for name, array in test.items()})
    data = str(FOLDER / "fashion_calibration.npz")
    return {"data": data, "eval": str(path), "calibration_limit": 200, "threads": 1, "measure": False}
