"""Clients that call Triton over gRPC."""
