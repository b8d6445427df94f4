"""ONNX Runtime in a child process; only here sessions are made."""
