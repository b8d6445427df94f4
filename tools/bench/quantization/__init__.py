"""int8 side by side: graphopt, ONNX Runtime's quantize_static and NNCF on the same samples and tests."""
