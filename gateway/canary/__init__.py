"""Canary and shadow releases: a version on trial beside the deployed version."""
