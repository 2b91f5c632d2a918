"""Drift, quality on live texts, texts to label next, and quarantine of feedback sources."""
