"""Layers in a form that takes fewer numbers: thinner products, tied weights, shared values."""
