"""Train the committed models on Fashion-MNIST: `python -m tools.train`."""
