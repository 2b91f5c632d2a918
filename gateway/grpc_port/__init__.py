"""The gRPC port for programs. It forwards only prediction calls to Triton."""
