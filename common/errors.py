"""The exception whose message is written for users of the pipeline."""


class PipelineError(Exception):
    """An error message for the person who runs the pipeline: what went wrong, where, and the fix.

    `app.py` prints the message without a traceback and exits with status 1.
    """
