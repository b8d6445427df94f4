"""Tools of the project's developers: models, training, benchmarks."""
