"""Passes that keep every output within rounding and need no samples."""
