"""The HTTP layer: request bodies, validation, problem details, callers and connection limits."""
