"""Benchmarks: `python -m tools.bench peers` compares graphopt with other optimizers side by side."""
