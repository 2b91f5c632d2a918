"""Sets of real texts of different lengths, and an endless supply of distinct texts from a set."""

import random
import statistics
from collections.abc import Iterator, Sequence
from itertools import count

from tokenizers import Tokenizer

from trainer.sample_data import REVIEW_DOMAINS, read_ratings

REVIEWS = "reviews"
MIXED = "mixed"
FLAT_LONG = "flat-long"

LONG_TOKENS = 508
"""A little less than BERT's maximum length, so that no passage is truncated: a word cut at its end may become one token
longer."""
FLAT_LONG_TOKENS = 300
_LONG_TEXTS = 1_000
_COUNTING_LETTERS = 12
_SEED = 0


def text_set(name: str, tokenizer: Tokenizer, unknown: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the texts of a set, in random order; all differ by more than letter case.

    `unknown` are the reviews that a trained model does not know; without any, all reviews are used.

    `reviews` are film and product sentences. `mixed` is 50 % reviews, 30 % tweets, and 20 % passages of 64 to 508
    tokens. `flat-long` are passages of about `FLAT_LONG_TOKENS` tokens. A passage is a sequence of review sentences.

    Raises:
        PipelineError: the ratings cannot be downloaded.
    """
    shuffled = random.Random(_SEED)
    reviews = _distinct(unknown or [text for domain in REVIEW_DOMAINS for text, _ in read_ratings(domain)])
    shuffled.shuffle(reviews)
    if name == REVIEWS:
        return tuple(reviews)
    if name == FLAT_LONG:
        return tuple(_passages(reviews, tokenizer, [FLAT_LONG_TOKENS] * _LONG_TEXTS, shuffled))
    tweets = _distinct(text for text, _ in read_ratings("tweet"))
    shuffled.shuffle(tweets)
    lengths = [shuffled.randint(64, LONG_TOKENS) for _ in range(_LONG_TEXTS)]
    passages = list(_passages(reviews, tokenizer, lengths, shuffled))
    mixed = reviews[: len(passages) * 5 // 2] + tweets[: len(passages) * 3 // 2] + passages
    mixed = _distinct(mixed)
    shuffled.shuffle(mixed)
    return tuple(mixed)


def distinct_texts(texts: Sequence[str]) -> Iterator[str]:
    """Yield the texts in endless rounds, without ever repeating one exactly.

    The letter case of a text's first letters encodes the round's number in binary. A cache sees a different text; an
    encoder that ignores case gets the same tokens. So all rounds cost the same.
    """
    for turn in count():
        for text in texts:
            yield _with_case(text, turn)


def describe_lengths(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, float]:
    """Return the number of texts, and their mean, median and longest length in tokens."""
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]
    return {
        "texts": len(texts),
        "mean_tokens": round(statistics.fmean(lengths), 1),
        "median_tokens": statistics.median(lengths),
        "longest_tokens": max(lengths),
    }


def _distinct(texts: Iterator[str] | Sequence[str]) -> list[str]:
    """Drop texts that differ only in letter case, and texts with too few letters to encode the round."""
    unlike = {text.casefold(): text for text in texts}
    return [text for text in unlike.values() if sum(map(_has_case, text)) >= _COUNTING_LETTERS]


def _with_case(text: str, turn: int) -> str:
    characters = list(text)
    positions = (position for position, character in enumerate(text) if _has_case(character))
    for bit in range(turn.bit_length()):
        position = next(positions)
        if turn >> bit & 1:
            characters[position] = characters[position].swapcase()
    return "".join(characters)


def _has_case(character: str) -> bool:
    # ASCII only: for some other letters, a change of case changes the tokens or the length.
    return character.isascii() and character.isalpha()


def _passages(
    sentences: Sequence[str], tokenizer: Tokenizer, lengths: Sequence[int], shuffled: random.Random
) -> Iterator[str]:
    """Yield passages of randomly chosen sentences, cut to about the given lengths in tokens, including `[CLS]` and
    `[SEP]`."""
    special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
    for length in lengths:
        joined = ""
        encoding = tokenizer.encode("", add_special_tokens=False)
        while len(encoding.ids) < length:
            joined = " ".join([joined, *shuffled.sample(sentences, 8)]).strip()
            encoding = tokenizer.encode(joined, add_special_tokens=False)
        yield joined[: encoding.offsets[length - special_tokens - 1][1]]
