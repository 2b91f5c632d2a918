"""Bulk scoring: adds label, score and version to the rows of files."""
