"""``python -m graphopt``."""

from graphopt.console.cli import main

main()
