"""A copy of the deployed version's data in the state directory, for the time in which the data files cannot be used."""

import json
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import PipelineError
from common.settings import Settings
from common.stored_json import read_object
from trainer.dataset import Dataset, LabelledTexts, load_dataset

FILE = "kept_data.parquet"
MOST_BYTES = 64 * 2**20
"""Maximum size of the training texts and of the validation texts; of more texts, a random sample is kept."""
_FACTS = b"sentiment"
_PARTS = ("train", "val")

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptFacts:
    """What is known about the copy without reading its texts."""

    version: int
    """The version whose data were kept."""
    labels: tuple[str, ...]
    fingerprint: str
    is_held_out: bool
    """As in `Dataset`."""
    texts: dict[str, int]
    """Number of texts of `train` and `val`, including those that were too many to keep."""


def keep(settings: Settings, version: int, dataset: Dataset) -> None:
    """Replace the copy with the data of the deployed `version`. If the disk refuses it, log that."""
    path = settings.state_dir / FILE
    part = path.with_name(f".{FILE}.{os.getpid()}.part")
    texts = {"train": len(dataset.train.texts), "val": len(dataset.val.texts)}
    facts = KeptFacts(version, dataset.labels, dataset.fingerprint, dataset.is_held_out, texts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{FILE}.*.part"):  # by a process that was killed
            left.unlink(missing_ok=True)
        # The texts are users' texts: only this account may read them, whatever the umask is.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            table = _table(dataset).replace_schema_metadata({_FACTS: json.dumps(asdict(facts))})
            pq.write_table(table, file, compression="zstd", use_dictionary=["part", "label"])
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        log.warning(
            "The data of version %d cannot be kept in %s: %s. If a data file becomes unusable, checks may fail.",
            version,
            path,
            error.strerror or error,
        )
    finally:
        with suppress(OSError):  # it was renamed, or could not be created
            part.unlink()


def kept_facts(settings: Settings) -> KeptFacts | None:
    """Return the facts about the copy; None if there is no readable one."""
    return _readable(settings, lambda path: _facts(pq.read_schema(path)))


def kept_data(settings: Settings) -> Dataset | None:
    """Return the copy; None if there is no readable one."""
    return _readable(settings, _dataset)


def known_texts(settings: Settings) -> list[str]:
    """Return all texts of the data files or, while they cannot be used, of the copy.

    Raises:
        PipelineError: the data files cannot be used, and there is no copy.
    """
    try:
        dataset = load_dataset(settings, write_list=False)
    except PipelineError:
        kept = kept_data(settings)
        if kept is None:
            raise
        dataset = kept
    return [*dataset.train.texts, *dataset.val.texts]


def _table(dataset: Dataset) -> pa.Table:
    rows = [
        (name, text, label)
        for name, part in zip(_PARTS, (dataset.train, dataset.val), strict=True)
        for text, label in _bounded(part)
    ]
    schema = pa.schema([("part", pa.string()), ("text", pa.large_string()), ("label", pa.string())])
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def _bounded(part: LabelledTexts) -> list[tuple[str, str]]:
    """Return the texts with their labels, or a random sample of them, the same each time, that is small enough."""
    rows = list(zip(part.texts, part.labels, strict=True))
    sizes = [len(text.encode()) + len(label.encode()) for text, label in rows]
    if sum(sizes) <= MOST_BYTES:
        return rows
    chosen, size = [], 0
    # A file may be sorted by label, so its beginning is no sample.
    for index in random.Random(0).sample(range(len(rows)), len(rows)):
        size += sizes[index]
        if size > MOST_BYTES:
            break
        chosen.append(index)
    return [rows[index] for index in sorted(chosen)]


def _readable(settings: Settings, read: Callable[[Path], T]) -> T | None:
    path = settings.state_dir / FILE
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        log.warning("The kept data in %s cannot be read: %s.", path, error)
        return None


def _facts(schema: pa.Schema) -> KeptFacts:
    return read_object(KeptFacts, json.loads((schema.metadata or {})[_FACTS]))


def _dataset(path: Path) -> Dataset:
    table = pq.read_table(path)
    facts = _facts(table.schema)
    rows = {name: LabelledTexts([], []) for name in _PARTS}
    for name, text, label in zip(*(column.to_pylist() for column in table.columns), strict=True):
        rows[name].texts.append(text)
        rows[name].labels.append(label)
    return Dataset(rows["train"], rows["val"], facts.labels, facts.fingerprint, notes=[], is_held_out=facts.is_held_out)
