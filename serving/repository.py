"""Triton's model repository on disk: which versions there are, and which one is deployed."""

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from errors import PipelineError
from serving.bundle import Bundle
from serving.protocol import CHALLENGER_NAME, MAX_BATCH_SIZE, MODEL_NAME, TICKET

BACKEND = "packed_onnx"

# A Triton that restarts loads what version_policy says, so this file is the record of what is deployed.
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
    """The directory that Triton serves from."""

    def __init__(self, root: Path) -> None:
        """`root` need not exist yet."""
        self.root = root
        self.model = root / MODEL_NAME
        self._config = self.model / "config.pbtxt"
        self._challenger = root / CHALLENGER_NAME

    def published(self) -> set[int]:
        """Versions that are in the repository, deployed or not."""
        return {int(path.name) for path in self.model.glob("[1-9]*") if path.name.isdecimal() and path.is_dir()}

    def version_directory(self, version: int) -> Path:
        """Where `version` lies, or would lie."""
        return self.model / str(version)

    def deployed(self) -> int | None:
        """The version that Triton loads; none before the first deployment.

        Raises:
            PipelineError: the configuration names no version, or one that is not complete.
        """
        version = self.named()
        if version is not None:
            Bundle.load(self.version_directory(version))
        return version

    @property
    def has_record(self) -> bool:
        """Whether something was deployed once, be its record damaged or not."""
        return self._config.exists()

    def named(self) -> int | None:
        """The same, whether or not the version is complete.

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
        """Move the complete bundle in `staging`, on the same file system, to its place; never overwrites.

        Raises:
            PipelineError: the version is there already.
        """
        Bundle.load(staging)
        for path in staging.iterdir():
            sync(path)
        sync(staging)
        try:
            # Fails on a directory that is not empty, also when another process just made it.
            staging.rename(self.version_directory(version))
        except OSError as error:
            raise PipelineError(
                f"Version {version} could not be published as {self.version_directory(version)}: "
                f"{error.strerror}. A published version is never overwritten."
            ) from error
        sync(self.model)

    def staging_directory(self, version: int) -> Path:
        """An empty directory beside the place of `version`, under a name that Triton passes over."""
        staging = self.model / f".{version}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def deploy(self, version: int) -> None:
        """Write the configuration that has Triton load `version`.

        Raises:
            PipelineError: the version is not published, or not complete, or the disk does not take the file.
        """
        configuration = self.configuration(version)
        temporary = self.model / ".config.pbtxt.partial"
        try:
            temporary.write_text(configuration, encoding="utf-8")
            sync(temporary)
            temporary.replace(self._config)
            sync(self.model)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PipelineError(f"{self._config} could not be written: {error.strerror}.") from error

    @property
    def has_challenger(self) -> bool:
        """Whether something lies where Triton loads a challenger from."""
        return self._challenger.exists()

    def has_challenger_of(self, version: int) -> bool:
        """Whether that is `version`, and whole."""
        return (self._challenger / str(version)).exists() and (self._challenger / self._config.name).exists()

    def lay_challenger(self, version: int) -> None:
        """Have `version` lie where Triton loads a challenger from, beside what is deployed.

        Raises:
            PipelineError: the version is not published, or not complete, or the disk does not take it.
        """
        configuration = self.configuration(version, name=CHALLENGER_NAME)
        temporary = self._challenger / f".{secrets.token_hex(4)}"
        try:
            # Another process may be doing the same.
            self._challenger.mkdir(exist_ok=True)
            for entry in self._challenger.iterdir():
                if entry.name not in (str(version), self._config.name):
                    entry.unlink(missing_ok=True)
            # Not a copy, for weights are large; relative, for a Triton elsewhere sees the repository at another path.
            with suppress(FileExistsError):
                (self._challenger / str(version)).symlink_to(Path("..", MODEL_NAME, str(version)))
            temporary.write_text(configuration, encoding="utf-8")
            temporary.replace(self._challenger / self._config.name)
        except OSError as error:
            raise PipelineError(f"{self._challenger} could not be written: {error.strerror}.") from error

    def remove_challenger(self) -> None:
        """Take that away; the version itself stays."""
        shutil.rmtree(self._challenger, ignore_errors=True)

    def configuration(self, version: int, ticket: str | None = None, name: str = MODEL_NAME) -> str:
        """The configuration that has Triton load `version`, with a ticket of `serving.switch` when it is to wait.

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


def sync(path: Path) -> None:
    """Have the kernel write `path`, a file or a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
