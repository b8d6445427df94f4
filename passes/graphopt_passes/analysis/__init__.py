"""What passes ask about a model without changing it."""
