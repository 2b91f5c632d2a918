"""Sets of real texts by length, and as many distinct texts of a set as a run needs."""

import random
import statistics
from collections.abc import Iterator, Sequence
from itertools import count

from tokenizers import Tokenizer

from trainer.sample_data import read_ratings

REVIEWS = "reviews"
TWEETS = "tweets"
MIXED = "mixed"
LONG = "long"
FLAT_LONG = "flat-long"
SETS = (REVIEWS, TWEETS, MIXED, LONG, FLAT_LONG)

LONG_TOKENS = 508
"""A little under the longest text that BERT reads, so that none is cut: a word that is cut at its end may become
a token longer."""
FLAT_LONG_TOKENS = 300
_LONG_TEXTS = 1_000
_COUNTING_LETTERS = 12
_SEED = 0


def text_set(name: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts of a set, in random order; no two are equal, letter case apart.

    `reviews` are film and product sentences; `mixed` is half reviews, three tenths tweets, two tenths passages
    of 64 to 508 tokens; `long` and `flat-long` are passages of about `LONG_TOKENS` and `FLAT_LONG_TOKENS`.
    Passages are sentences of reviews, one after the other.

    Raises:
        PipelineError: the ratings cannot be fetched.
    """
    shuffled = random.Random(_SEED)
    reviews = _distinct(text for domain in ("film", "product") for text, _ in read_ratings(domain))
    shuffled.shuffle(reviews)
    if name == REVIEWS:
        return tuple(reviews)
    if name == LONG:
        return tuple(_passages(reviews, tokenizer, [LONG_TOKENS] * _LONG_TEXTS, shuffled))
    if name == FLAT_LONG:
        return tuple(_passages(reviews, tokenizer, [FLAT_LONG_TOKENS] * _LONG_TEXTS, shuffled))
    tweets = _distinct(text for text, _ in read_ratings("tweet"))
    shuffled.shuffle(tweets)
    if name == TWEETS:
        return tuple(tweets)
    lengths = [shuffled.randint(64, LONG_TOKENS) for _ in range(_LONG_TEXTS)]
    passages = list(_passages(reviews, tokenizer, lengths, shuffled))
    mixed = reviews[: len(passages) * 5 // 2] + tweets[: len(passages) * 3 // 2] + passages
    mixed = _distinct(mixed)
    shuffled.shuffle(mixed)
    return tuple(mixed)


def distinct_texts(texts: Sequence[str]) -> Iterator[str]:
    """Give the texts again and again without end, and never the same twice.

    The letter case of a text's first letters counts the rounds, in binary. To a cache it is another text, to an
    encoder that ignores case it has the same tokens, so all rounds cost the same.
    """
    for turn in count():
        for text in texts:
            yield _with_case(text, turn)


def describe_lengths(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, float]:
    """How many texts there are, and how long they are in tokens."""
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]
    return {
        "texts": len(texts),
        "mean_tokens": round(statistics.fmean(lengths), 1),
        "median_tokens": statistics.median(lengths),
        "longest_tokens": max(lengths),
    }


def _distinct(texts: Iterator[str] | Sequence[str]) -> list[str]:
    """Those that are another text, letter case apart, than any before, and have letters enough to count with."""
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
    # Of ASCII only: the case of some others changes their tokens, or their number.
    return character.isascii() and character.isalpha()


def _passages(
    sentences: Sequence[str], tokenizer: Tokenizer, lengths: Sequence[int], shuffled: random.Random
) -> Iterator[str]:
    """Sentences in random order, joined and cut so that each passage has about its length in tokens, `[CLS]` and
    `[SEP]` among them."""
    special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
    for length in lengths:
        joined = ""
        encoding = tokenizer.encode("", add_special_tokens=False)
        while len(encoding.ids) < length:
            joined = " ".join([joined, *shuffled.sample(sentences, 8)]).strip()
            encoding = tokenizer.encode(joined, add_special_tokens=False)
        yield joined[: encoding.offsets[length - special_tokens - 1][1]]
