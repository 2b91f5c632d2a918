"""The one exception that a user of the pipeline is meant to read."""


class PipelineError(Exception):
    """What went wrong, where, and what to do, in words for the person who runs the pipeline.

    `app.py` prints the message without a traceback and exits with status 1.
    """
