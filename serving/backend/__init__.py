"""Code that runs inside Triton: the inference engine, packing and the runtimes."""
