"""API keys, the admin key and TLS."""
