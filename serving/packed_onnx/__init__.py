"""The Triton backend `packed_onnx`: text in, label out."""
