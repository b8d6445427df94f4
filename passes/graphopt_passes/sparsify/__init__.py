"""Weights that are zero: which ones, and what the others become."""
