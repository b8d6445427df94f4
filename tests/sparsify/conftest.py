"""One worker for all tests of sparsity."""

from __future__ import annotations

from tests.passes.conftest import worker

__all__ = ["worker"]
