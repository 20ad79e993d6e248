"""graphopt makes an ONNX model small and fast on an ARM CPU."""
