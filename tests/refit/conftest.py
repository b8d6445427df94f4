"""One worker for all tests of refitting."""

from __future__ import annotations

from tests.passes.conftest import worker

__all__ = ["worker"]
