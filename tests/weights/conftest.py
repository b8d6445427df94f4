"""One worker for all tests of weights in fewer bits."""

from __future__ import annotations

from tests.passes.conftest import worker

__all__ = ["worker"]
