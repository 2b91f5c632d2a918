"""The moment at which all Tritons turn to another version, told through the model repository that they share.

A Triton asked to load a version brings it up beside the one that answers, and turns to it as soon as it is ready: each
at a time of its own. So the load that belongs to a deployment carries a ticket, and our backend, when the version is
ready, says so in the ticket's file and waits. What it waits for is the record of what is deployed (`config.pbtxt`):
when that names the version, the backend says "loaded", and Triton turns to it. One file is replaced, and all Tritons
turn within the time between two looks at it. When whoever deploys takes the tickets away, or gives no sign of life any
more, the load fails; the version before answers all along.

A load without a ticket, as at a start, is of what the record named when it began. Where another was deployed
meanwhile it fails, so that a Triton which starts at any time comes up with the right version or starts once more.
"""

import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from errors import PipelineError
from serving.repository import ModelRepository

BEAT_S = 1.0
"""Between two signs of life of whoever deploys."""
PATIENCE_S = 10.0
"""Without one, after which a backend waits no longer. A Triton that is told to end cannot while one waits in it."""
_LOOK_S = 0.02
_TICKETS = ".switch"
_BEAT = "beat"
_READY = "ready"
_GONE = "gone"


class Switch:
    """The tickets of the one deployment that is under way, for whoever deploys."""

    def __init__(self, repository: ModelRepository) -> None:
        """Nothing is touched yet."""
        self._directory = repository.model / _TICKETS

    def begin(self) -> None:
        """Call off a deployment that was killed, and prepare another."""
        self.end()
        self._directory.mkdir(parents=True)
        self.beat()

    def beat(self) -> None:
        """Give a sign of life; to be done every `BEAT_S`."""
        (self._directory / _BEAT).write_text(secrets.token_hex(4))

    def lay_ticket(self) -> str:
        """Make a ticket for a Triton's load; returns its name."""
        name = secrets.token_hex(8)
        ticket = self._directory / name
        ticket.touch()
        ticket.chmod(0o666)  # Triton may run as another user
        return name

    def is_ready(self, ticket: str) -> bool:
        """Whether the version waits in the Triton that has the ticket.

        Raises:
            PipelineError: the deployment has been called off by another.
        """
        try:
            # Opened, for over a network file system only that asks the server.
            return (self._directory / ticket).read_text() == _READY
        except FileNotFoundError as error:
            raise PipelineError("another process called the deployment off") from error

    def end(self) -> None:
        """Take all tickets away: what still waits gives up."""
        shutil.rmtree(self._directory, ignore_errors=True)


def wait_for_turn(repository: ModelRepository, version: int, ticket: str | None) -> None:
    """Return when `version`, which this backend has loaded, is to answer.

    Raises:
        PipelineError: it is not to: its deployment was called off, or another version is deployed.
    """
    if ticket is None:
        named = repository.named()
        if named != version:
            raise PipelineError(f"version {named} was deployed while version {version} was loading")
        return
    path = repository.model / _TICKETS / ticket
    try:
        _write(path, _READY)
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be written ({error.strerror}): Triton must be able to write to the model repository, "
            "unless the deployment was called off"
        ) from error
    beat, heard_at = "", time.monotonic()
    while repository.named() != version:
        try:
            path.stat()  # the signs of life may be those of another deployment, which has called this one off
            beat_before, beat = beat, path.with_name(_BEAT).read_text()
        except FileNotFoundError as error:
            raise PipelineError(f"the deployment of version {version} was called off") from error
        if beat != beat_before:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > PATIENCE_S:
            with suppress(OSError):
                _write(path, _GONE)
            raise PipelineError(f"whoever deploys version {version} gave no sign of life for {PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)


def _write(ticket: Path, word: str) -> None:
    with ticket.open("r+") as file:  # never makes one
        file.truncate()
        file.write(word)
