"""Lengths, unknown tokens and scripts of texts, as the tokenizer of an encoder sees them."""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.model_repo.texts import readable
from trainer.base_tokenizer import BaseTokenizer

MOST_TEXTS = 20_000
"""Maximum texts to tokenize; a random sample if there are more. They take a few seconds."""
ALARMING = 0.1
"""Share of unknown tokens, or of cut texts, from which there is a warning."""
_CHUNK = 1_000


@dataclass(frozen=True)
class TokenFigures:
    """What a tokenizer makes of the texts."""

    encoder: str
    """The encoder whose tokenizer this is."""
    stands_in_for: str
    """The base model whose own tokenizer is not on this machine; empty if this is its own."""
    max_length: int
    """Maximum tokens per text; longer texts are cut."""
    texts: int
    """Number of texts that were tokenized."""
    median: int
    """Tokens of a text, as the model reads it, before it is cut; the next two fields too."""
    nearly_longest: int
    """Length that 95 % of the texts do not exceed."""
    longest: int
    truncated: float
    """Share of texts that are cut."""
    unknown: float
    """Share of tokens that stand for signs which the encoder does not know, such as `[UNK]`."""

    def warnings(self) -> list[str]:
        """Return what is wrong with these texts for this encoder, in words."""
        warnings = []
        if self.unknown >= ALARMING:
            warnings.append(
                f"{100 * self.unknown:.0f} % of the tokens are unknown to the encoder {self.encoder}: it does not know "
                "the language or the signs of these texts. Set SENTIMENT_BASE_MODEL to an encoder for this language, "
                "or to a multilingual one"
            )
        if self.truncated >= ALARMING:
            warnings.append(
                f"{100 * self.truncated:.0f} % of the texts are longer than {self.max_length} tokens, and the model "
                "reads only their beginning. If the encoder reads more, raise SENTIMENT_MAX_LENGTH"
            )
        return warnings


def token_figures(texts: Sequence[str], base: BaseTokenizer) -> TokenFigures | None:
    """Tokenize the texts, or a random sample of them; None if there are no texts."""
    sample = _sample(texts)
    if not sample:
        return None
    base.tokenizer.no_truncation()
    base.tokenizer.no_padding()
    base.tokenizer.encode_special_tokens = True  # as in the training
    added = base.tokenizer.num_special_tokens_to_add(is_pair=False)
    unknown_token: str | None = getattr(base.tokenizer.model, "unk_token", None)
    unknown_id = base.tokenizer.token_to_id(unknown_token) if unknown_token else None
    lengths: list[int] = []
    cut = unknown = 0
    for start in range(0, len(sample), _CHUNK):
        parts = [readable(text, base.max_length) for text in sample[start : start + _CHUNK]]
        encodings = base.tokenizer.encode_batch_fast([part.text for part in parts])
        for part, encoding in zip(parts, encodings, strict=True):
            lengths.append(len(encoding.ids))
            cut += part.is_cut or len(encoding.ids) > base.max_length
            unknown += 0 if unknown_id is None else encoding.ids.count(unknown_id)
    return TokenFigures(
        encoder=base.name,
        stands_in_for=base.stands_in_for,
        max_length=base.max_length,
        texts=len(sample),
        median=round(float(np.median(lengths))),
        nearly_longest=round(float(np.quantile(lengths, 0.95))),
        longest=max(lengths),
        truncated=cut / len(sample),
        unknown=unknown / max(sum(lengths) - added * len(sample), 1),
    )


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of each script among the letters of the texts, or of a random sample; the largest first."""
    sample = _sample(texts)
    found: Counter[str] = Counter()
    for letter, count in Counter("".join(sample)).items():
        if letter.isalpha():
            # The first word of a letter's name is its script: LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4F60.
            found[unicodedata.name(letter, "OTHER").partition(" ")[0].capitalize()] += count
    return {"CJK" if script == "Cjk" else script: count / found.total() for script, count in found.most_common()}


def _sample(texts: Sequence[str]) -> Sequence[str]:
    return texts if len(texts) <= MOST_TEXTS else random.Random(0).sample(texts, MOST_TEXTS)
