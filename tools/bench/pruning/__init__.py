"""Pruning side by side: graphopt and onnxsim's pruner on the same samples and tests."""
