"""The path of a validated text to Triton and back: cache, micro-batching and batch splitting."""
