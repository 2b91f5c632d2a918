"""Makes all Tritons switch to another version at the same time, through the model repository that they share.

Triton loads a new version beside the deployed one, and switches as soon as the load ends: each Triton at a different
time. So each load of a deployment carries a ticket. When the version is ready, our backend writes that into the
ticket's file and waits. Once the record of the deployed version (`config.pbtxt`) names the version, the backend ends
the load, and Triton switches. Because one file is replaced, all Tritons switch within one polling interval. If the
deploying process removes the tickets, or its heartbeat stops, the load fails. The previous version stays deployed until
the switch.

A load without a ticket, as at startup, is for the version that the record named when the load began. If another version
was deployed meanwhile, the load fails: Triton thus starts with the right version, or restarts once more.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from common.errors import PipelineError
from serving.model_repo.repository import ModelRepository

BEAT_S = 1.0
"""Seconds between two heartbeats of the deploying process."""
PATIENCE_S = 10.0
"""Seconds without a heartbeat after which a backend gives up. Triton cannot shut down while a backend waits."""
_LOOK_S = 0.02
_TICKETS = ".switch"
_BEAT = "beat"
_READY = "ready"
_GONE = "gone"
_LONGEST_WORD = 16
"""Maximum bytes of a heartbeat or ticket file; the pipeline writes at most eight."""


class Switch:
    """The tickets of the deployment in progress, for the deploying process; there is only one at a time."""

    def __init__(self, repository: ModelRepository) -> None:
        """Use the repository's ticket directory, without changing it yet."""
        self._directory = repository.model / _TICKETS

    def begin(self) -> None:
        """Cancel an interrupted deployment, if there is one, and prepare another."""
        self.end()
        self._directory.mkdir(parents=True)
        self.beat()

    def beat(self) -> None:
        """Write a heartbeat; call this every `BEAT_S` seconds."""
        (self._directory / _BEAT).write_text(secrets.token_hex(4))

    def lay_ticket(self) -> str:
        """Create a ticket for a Triton's load and return its name."""
        name = secrets.token_hex(8)
        # Only for this user, who also runs Triton: anyone who can write to it could get a version deployed too early.
        os.close(os.open(self._directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return name

    def is_ready(self, ticket: str) -> bool:
        """Return whether the Triton with the ticket has loaded the version and waits.

        Raises:
            PipelineError: another process cancelled the deployment, or the file is not a valid ticket.
        """
        try:
            return _read(self._directory / ticket) == _READY
        except FileNotFoundError as error:
            raise PipelineError("another process called the deployment off") from error

    def end(self) -> None:
        """Remove all tickets; backends that still wait give up."""
        shutil.rmtree(self._directory, ignore_errors=True)


def wait_for_turn(repository: ModelRepository, version: int, ticket: str | None) -> None:
    """Wait until `version`, which this backend has loaded, is the deployed version.

    Raises:
        PipelineError: the deployment was cancelled, its heartbeat stopped, or another version is deployed.
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
            f"{path} cannot be written ({error.strerror}): Triton must be able to write to the model repository, as "
            "the same user as the rest of the pipeline, unless the deployment was called off"
        ) from error
    beat, heard_at = "", time.monotonic()
    while repository.named() != version:
        try:
            path.stat()  # the heartbeat may be another deployment's, which has cancelled this one
            beat_before, beat = beat, _read(path.with_name(_BEAT))
        except FileNotFoundError as error:
            raise PipelineError(f"the deployment of version {version} was called off") from error
        if beat != beat_before:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > PATIENCE_S:
            with suppress(OSError):
                _write(path, _GONE)
            raise PipelineError(f"whoever deploys version {version} gave no sign of life for {PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)


def _read(path: Path) -> str:
    """Return the word in a deployment's file.

    Raises:
        PipelineError: the pipeline cannot have written the file, by its type or size.
    """
    # Open the file each time, because on a network file system only that contacts the server.
    with _open(path, os.O_RDONLY) as file:
        word = file.read(_LONGEST_WORD + 1)
    if len(word) > _LONGEST_WORD:
        raise PipelineError(f"{path} is no file of a deployment: it is longer than {_LONGEST_WORD} bytes. Remove it.")
    return word.decode("ascii", "replace")


def _write(path: Path, word: str) -> None:
    with _open(path, os.O_WRONLY | os.O_TRUNC) as file:  # never creates the file
        file.write(word.encode())


def _open(path: Path, flags: int) -> IO[bytes]:
    strange = PipelineError(f"{path} is no regular file, and so no file of a deployment. Remove it.")
    try:
        # Do not follow links, and do not block on a pipe.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise strange from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise strange
    return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "wb", buffering=0)
