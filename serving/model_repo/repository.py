"""Triton's model repository on disk: the published versions and the deployed version."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import NotDeployedError, PipelineError
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import CHALLENGER_NAME, MAX_BATCH_SIZE, MODEL_NAME, TICKET

BACKEND = "packed_onnx"

# A restarted Triton loads the version in version_policy, so this file is the record of the deployed version.
_CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch_size}
input [ {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
  {{ name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "SCORE" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "PROBABILITIES" data_type: TYPE_FP32 dims: [ {labels} ] }},
  {{ name: "TRUNCATED" data_type: TYPE_BOOL dims: [ 1 ] }},
  {{ name: "PHASES" data_type: TYPE_FP32 dims: [ 3 ] }}
]
version_policy: {{ specific: {{ versions: [ {version} ] }} }}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
_TICKET = 'parameters: {{ key: "{key}" value: {{ string_value: "{ticket}" }} }}\n'


class ModelRepository:
    """The directory from which Triton loads models."""

    def __init__(self, root: Path) -> None:
        """Use the directory `root`, which need not exist yet."""
        self.root = root
        self.model = root / MODEL_NAME
        self._config = self.model / "config.pbtxt"
        self._challenger = root / CHALLENGER_NAME

    def published(self) -> set[int]:
        """Return all versions in the repository, deployed or not."""
        return {int(path.name) for path in self.model.glob("[1-9]*") if path.name.isdecimal() and path.is_dir()}

    def version_directory(self, version: int) -> Path:
        """Return the directory of `version`, which need not exist."""
        return self.model / str(version)

    def deployed(self) -> int | None:
        """Return the deployed version; None before the first deployment.

        Raises:
            PipelineError: the configuration names no version, or one that is not complete.
        """
        version = self.named()
        if version is not None:
            Bundle.load(self.version_directory(version))
        return version

    def require_deployed(self) -> int:
        """Return the deployed version.

        Raises:
            NotDeployedError: no version was ever deployed.
            PipelineError: as in `deployed`.
        """
        if (version := self.deployed()) is None:
            raise NotDeployedError
        return version

    @property
    def has_record(self) -> bool:
        """True if there is a record of a deployed version, damaged or not."""
        return self._config.exists()

    def named(self) -> int | None:
        """Return the version that the record names, complete or not; None before the first deployment.

        Raises:
            PipelineError: the configuration names no version.
        """
        try:
            config = self._config.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        found = re.search(r"version_policy:\s*{\s*specific:\s*{\s*versions:\s*\[\s*([0-9]{1,18})\s*]", config)
        if not found:
            raise PipelineError(
                f"{self._config} names no deployed version (version_policy); restore or remove the file."
            )
        return int(found[1])

    def publish(self, staging: Path, version: int) -> None:
        """Move the complete bundle in `staging`, on the same file system, to its final place; never overwrites.

        Raises:
            PipelineError: the bundle is not complete, or the version exists already.
        """
        Bundle.load(staging)
        for path in staging.rglob("*"):
            sync(path)
        sync(staging)
        try:
            # Fails if the directory exists and is not empty, even if another process has just created it.
            staging.rename(self.version_directory(version))
        except OSError as error:
            raise PipelineError(
                f"Version {version} could not be published as {self.version_directory(version)}: "
                f"{error.strerror}. A published version is never overwritten."
            ) from error
        sync(self.model)

    def staging_directory(self, version: int) -> Path:
        """Create an empty directory beside that of `version`, with a name that Triton ignores, and return it."""
        staging = self.model / f".{version}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def deploy(self, version: int) -> None:
        """Write the configuration that makes `version` the deployed version.

        Raises:
            PipelineError: the version is not published, or not complete, or the file cannot be written.
        """
        configuration = self.configuration(version)
        try:
            _replace(self._config, configuration)
        except OSError as error:
            raise PipelineError(f"{self._config} could not be written: {error.strerror}.") from error

    @property
    def has_challenger(self) -> bool:
        """True if the directory from which Triton loads a candidate exists."""
        return self._challenger.exists()

    def has_challenger_of(self, version: int) -> bool:
        """Return whether the candidate's directory is complete and contains `version`."""
        return (self._challenger / str(version)).exists() and (self._challenger / self._config.name).exists()

    def lay_challenger(self, version: int) -> None:
        """Put `version` into the directory from which Triton loads a candidate, beside the deployed version.

        Raises:
            PipelineError: the version is not published, or not complete, or the files cannot be written.
        """
        configuration = self.configuration(version, name=CHALLENGER_NAME)
        try:
            # Another process may do this at the same time, so only links to other versions are removed, no other file.
            self._challenger.mkdir(exist_ok=True)
            for entry in self._challenger.iterdir():
                if entry.name.isdecimal() and entry.name != str(version):
                    entry.unlink(missing_ok=True)
            # A link, because weights are large; relative, because other Tritons may mount the repository elsewhere.
            with suppress(FileExistsError):
                (self._challenger / str(version)).symlink_to(Path("..", MODEL_NAME, str(version)))
            _replace(self._challenger / self._config.name, configuration)
        except OSError as error:
            raise PipelineError(f"{self._challenger} could not be written: {error.strerror}.") from error

    def remove_challenger(self) -> None:
        """Remove the candidate's directory; the version itself stays published."""
        shutil.rmtree(self._challenger, ignore_errors=True)

    def configuration(self, version: int, ticket: str | None = None, name: str = MODEL_NAME) -> str:
        """Return Triton's configuration for `version`; with a ticket, the load waits (`serving.model_repo.switch`).

        Raises:
            PipelineError: the version is not published, or not complete.
        """
        configuration = _CONFIG.format(
            name=name,
            backend=BACKEND,
            max_batch_size=MAX_BATCH_SIZE,
            labels=len(Bundle.load(self.version_directory(version)).labels),
            version=version,
        )
        return configuration if ticket is None else configuration + _TICKET.format(key=TICKET, ticket=ticket)


def _replace(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, with a name of its own; then replace the file at `path` at once, durably.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush `path`, a file or directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
