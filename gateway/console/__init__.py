"""The console: the gateway's web pages, at `/`."""
