"""Weights of few bits beside other quantizers: `python -m tools.bench weights`."""
