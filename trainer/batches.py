"""Texts as token ids, the order in which an epoch learns from them, and what of it falls to each process."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from trainer.dataset import LabelledTexts
from trainer.processes import Processes

NO_TARGET = -100
"""Of what nobody learns from, to PyTorch's losses and the trainer."""
_NO_TEXT = -1
"""Position of what stands in for a text in the share of a process for which none is left."""
_TOKENIZE_CHUNK = 10_000


class TokenizedTexts(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts as token ids in one flat array, so that a million of them fit in memory."""

    def __init__(
        self, data: LabelledTexts, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Tokenize `data`, each text cut to `max_length` tokens."""
        index = {label: position for position, label in enumerate(labels)}
        self.targets = np.array([index[label] for label in data.labels], dtype=np.int64)
        chunks: list[npt.NDArray[np.int32]] = []
        lengths: list[int] = []
        for start in range(0, len(data.texts), _TOKENIZE_CHUNK):
            encoded: Sequence[Sequence[int]] = tokenizer(
                data.texts[start : start + _TOKENIZE_CHUNK], truncation=True, max_length=max_length
            )["input_ids"]
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
        """Token ids and target of one text, or of none."""
        if position == _NO_TEXT:
            return self[0] | {"labels": NO_TARGET}
        start = self._ends[position - 1] if position else 0
        return {"input_ids": self._tokens[start : self._ends[position]].tolist(), "labels": int(self.targets[position])}


class EpochSampler(LengthGroupedSampler):
    """Draws the order of an epoch from the seed and the epoch's number alone, and gives a process its share of it.

    So a training that resumes within an epoch passes over the texts that it has seen there; from the global random
    state, which a checkpoint restores as it was then, it would draw another order, with some texts twice and some
    not at all. And a batch holds the same texts however many processes share it.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, processes: Processes) -> None:
        """Divide batches of `batch_size` texts, of so many tokens each, among the processes."""
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self._processes = processes
        self.set_epoch(0)

    def __len__(self) -> int:
        """Number of texts of this process's share, the same in each."""
        return -(-len(self.lengths) // self._processes.count)

    def __iter__(self) -> Iterator[int]:
        """Every so-manieth text of the order, so that of each batch all have as many, and of like lengths."""
        order = list(super().__iter__())  # type: ignore[no-untyped-call]
        order += [_NO_TEXT] * (-len(order) % self._processes.count)
        return iter(order[self._processes.rank :: self._processes.count])

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of `epoch`; the trainer calls it."""
        self.generator.manual_seed(self._seed + epoch)
