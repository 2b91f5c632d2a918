"""The sets of texts have the lengths that they claim, and no text is sent twice."""

from itertools import islice

import pytest
from tokenizers import Tokenizer

from benchmarks import texts
from trainer.base_tokenizer import packaged_directory


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(packaged_directory() / "tokenizer.json"))


@pytest.fixture(scope="module")
def plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_counts(tokenizer: Tokenizer, items: tuple[str, ...] | list[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(items))]


def test_reviews_are_short_and_of_mixed_lengths(plain: Tokenizer) -> None:
    reviews = texts.text_set(texts.REVIEWS, plain)
    described = texts.describe_lengths(reviews, plain)
    assert len(reviews) > 13_000
    assert 24 < described["mean_tokens"] < 28


def test_long_texts_are_uniform_and_not_cut(plain: Tokenizer) -> None:
    counts = token_counts(plain, texts.text_set(texts.FLAT_LONG, plain))
    assert max(counts) <= 512
    assert all(abs(count - texts.FLAT_LONG_TOKENS) <= 4 for count in counts)


def test_mixed_texts_are_of_every_length(plain: Tokenizer) -> None:
    counts = sorted(token_counts(plain, texts.text_set(texts.MIXED, plain)))
    assert counts[len(counts) // 2] < 40
    assert 400 < counts[len(counts) * 98 // 100] <= 512


def test_no_text_comes_twice_and_all_rounds_have_the_same_tokens(plain: Tokenizer) -> None:
    reviews = texts.text_set(texts.REVIEWS, plain)[:200]
    rounds = 9
    sent = list(islice(texts.distinct_texts(reviews), rounds * len(reviews)))
    assert len(set(sent)) == len(sent)
    assert sent[: len(reviews)] == list(reviews)
    assert token_counts(plain, sent) == token_counts(plain, reviews) * rounds
