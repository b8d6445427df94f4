"""Weights stored in half precision: `python -m tools.bench storage`."""
