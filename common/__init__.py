"""Settings, errors, logging, tracing, progress and downloads. All folders use this one; it imports none of them."""
