"""What is proved about types, dims and small integer contents of values."""
