"""fp16 beside other converters: `python -m tools.bench half`."""
