"""The error for a file that cannot be read as a table."""

from common.errors import PipelineError


class TableError(PipelineError):
    """A file cannot be read as a table of texts. The message names the file, the problem and the fix."""
