"""Servers that users run today; each is a script of its own, as they would write it."""
