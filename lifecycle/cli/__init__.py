"""The commands of `app.py` that read or change versions, releases and feedback."""
