"""Admission, backlog, deadlines, rate limits and turns between callers."""
