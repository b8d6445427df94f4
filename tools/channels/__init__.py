"""Cuts random channels out of real models and compares with the oracle: `python -m tools.channels`."""
