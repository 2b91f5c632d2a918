"""Bulk scoring: files in, the same files with label, score and version out."""
