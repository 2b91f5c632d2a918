"""The exceptions whose messages are written for users of the pipeline."""


class PipelineError(Exception):
    """An error message for the person who runs the pipeline: what went wrong, where, and the fix.

    `app.py` prints the message without a traceback and exits with status 1.
    """


class NotDeployedError(PipelineError):
    """No version was ever deployed."""

    def __init__(self, trained_by: str = "") -> None:
        """Have the message say what to do. `trained_by` names the process that trains the first version, if known."""
        fix = "Run `python app.py` to train, export and serve one, or wait, if it is training already."
        if trained_by:
            fix = f'`python app.py` ({trained_by}) is training it now; wait until its log says "Ready".'
        super().__init__(f"No model is deployed yet. {fix}")
