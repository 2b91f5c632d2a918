"""Metrics, the request log, the sample of live texts, and threads for database work."""
