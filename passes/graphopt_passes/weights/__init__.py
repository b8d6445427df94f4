"""Weights in fewer bits, while the model computes on floats: half precision, and blocks of int8 or int4."""
