"""Train the models of Fashion-MNIST, and a small language model: `python -m tools.train`."""
