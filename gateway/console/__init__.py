"""The console: pages for people, at `/`."""
