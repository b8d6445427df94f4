"""Removing what a model does not need: the search that keeps the budget, and what is shared by its stages."""
