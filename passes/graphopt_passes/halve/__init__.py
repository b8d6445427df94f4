"""fp16 and bf16: what may be half, what must not, and how few Casts lie between."""
