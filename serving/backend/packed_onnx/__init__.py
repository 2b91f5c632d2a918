"""The Triton backend `packed_onnx`, which classifies texts."""
