"""Learning from texts without labels: where the model is sure of a text, it learns to stay so with hidden words.

The method is FixMatch (Sohn et al. 2020, arXiv:2001.07685), with masked tokens as the strong change of a text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from trainer.batches import token_ids

LEAST_TEXTS = 200
"""Fewer texts are not learnt from."""
_BATCH = 32
"""Texts of each training step."""
_SURE = 0.95
"""Least probability of a label that is learnt, the paper's value."""
_HIDDEN = 0.3
"""Share of the tokens that are masked."""


class UnlabelledTexts:
    """Texts without labels, as token ids, some of which are learnt from in each training step."""

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        collator: DataCollatorWithPadding,
        seed: int,
    ) -> None:
        """Tokenize at least `LEAST_TEXTS`, each cut to `max_length` tokens. The tokenizer has a mask token."""
        self._ids = token_ids(texts, tokenizer, max_length)
        self._collator = collator
        self._mask = tokenizer.mask_token_id
        self._special = torch.tensor(tokenizer.all_special_ids)
        self._seed = seed

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return the texts of a step: token ids, with and without masks, and the attention mask, each [texts, tokens].

        They depend on the seed and the step alone, so a training that resumes goes on with the same texts.
        """
        random = np.random.default_rng([self._seed, step])
        places = random.choice(len(self._ids), _BATCH, replace=False)
        batch: dict[str, torch.Tensor] = dict(self._collator([{"input_ids": self._ids[place]} for place in places]))
        ids = batch["input_ids"]
        is_hidden = torch.from_numpy(random.random(ids.shape) < _HIDDEN) & ~torch.isin(ids, self._special)
        return {**batch, "masked_ids": ids.masked_fill(is_hidden, self._mask)}


def consistency_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], texts: int) -> torch.Tensor:
    """Return the part of a batch of `texts` in its loss: cross entropy with masks, to the labels that are sure without.

    `batch` has the tensors of `UnlabelledTexts.batch`. Texts of which the model is not sure count as 0.
    """
    masked = batch["masked_ids"]
    clean = {name: values for name, values in batch.items() if name != "masked_ids"}
    model.train(False)
    with torch.no_grad():
        probability, label = torch.softmax(model(**clean).logits.float(), dim=1).max(dim=1)
    model.train()
    losses = cross_entropy(model(**clean | {"input_ids": masked}).logits.float(), label, reduction="none")
    return (losses * (probability >= _SURE)).sum() / texts
