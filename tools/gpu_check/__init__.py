"""Half precision on a GPU: `python -m tools.gpu_check`."""
