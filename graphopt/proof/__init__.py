"""Whether a result is the same as the original, and faster."""
