"""Texts as token ids, their order in an epoch, and the share of each process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from serving.model_repo.texts import readable
from trainer.dataset import LabelledTexts
from trainer.evaluation import targets_of
from trainer.processes import Processes

NO_TARGET = -100
"""Target that PyTorch's losses and the trainer ignore."""
_NO_TEXT = -1
"""Position of a placeholder in the share of a process for which no text is left."""
_TOKENIZE_CHUNK = 10_000
MOST_TOKENS = 4096
"""Maximum tokens, padding included, that pass through the model at once, so that long texts need no more memory than
short ones: with MPNet base, a batch of 32 texts of 512 tokens took over 23 GB, and 8 such texts take 9.5 GB."""


def longest_first(texts: LabelledTexts) -> LabelledTexts:
    """Return the texts by their number of characters, so that consecutive texts need little padding."""
    return texts.at(sorted(range(len(texts.texts)), key=lambda place: -len(texts.texts[place])))


def parts_of(batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Divide a batch, whose tensors are [texts, …], into parts of at most `MOST_TOKENS`, or of one text."""
    texts, tokens = batch["input_ids"].shape
    size = max(1, MOST_TOKENS // tokens)
    return [{name: values[at : at + size] for name, values in batch.items()} for at in range(0, texts, size)]


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """Return the token ids of each text, cut to `max_length`."""
    encoded: list[list[int]] = tokenizer(
        [readable(text, max_length).text for text in texts],
        truncation=True,
        max_length=max_length,
        split_special_tokens=True,  # `[SEP]` in a text is text, as in the engine
    )["input_ids"]
    return encoded


class TokenizedTexts(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts as token ids in one flat array, so that a million texts fit in memory."""

    def __init__(
        self, data: LabelledTexts, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Tokenize `data`, each text cut to `max_length` tokens."""
        self.targets = targets_of(data.labels, labels)
        chunks: list[npt.NDArray[np.int32]] = []
        lengths: list[int] = []
        for start in range(0, len(data.texts), _TOKENIZE_CHUNK):
            encoded = token_ids(data.texts[start : start + _TOKENIZE_CHUNK], tokenizer, max_length)
            lengths.extend(len(ids) for ids in encoded)
            chunks.append(np.fromiter((token for ids in encoded for token in ids), dtype=np.int32))
        self._tokens = np.concatenate(chunks)
        self._ends = np.cumsum(lengths)
        self.lengths = lengths
        """Tokens of each text."""

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Token ids and target of one text, or of the placeholder."""
        if position == _NO_TEXT:
            return self[0] | {"labels": NO_TARGET}
        start = self._ends[position - 1] if position else 0
        return {"input_ids": self._tokens[start : self._ends[position]].tolist(), "labels": int(self.targets[position])}


class EpochSampler(LengthGroupedSampler):
    """Orders the texts of an epoch by the seed and the epoch's number, and gives a process its share.

    So a training that resumes within an epoch skips the texts that it has already seen. With the global random state,
    which a checkpoint restores, the order would differ: some texts would come twice and some not at all. A batch
    contains the same texts whatever the number of processes.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, processes: Processes) -> None:
        """Divide batches of `batch_size` texts among the processes; `lengths` are tokens per text."""
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self._processes = processes
        self.set_epoch(0)

    def __len__(self) -> int:
        """Number of texts in the share of each process."""
        return -(-len(self.lengths) // self._processes.count)

    def __iter__(self) -> Iterator[int]:
        """Every n-th text for n processes, so that all get equal shares of each batch, with similar lengths."""
        order = list(super().__iter__())  # type: ignore[no-untyped-call]
        order += [_NO_TEXT] * (-len(order) % self._processes.count)
        return iter(order[self._processes.rank :: self._processes.count])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; the trainer calls it."""
        self.generator.manual_seed(self._seed + epoch)
