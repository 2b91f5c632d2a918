"""Changed texts are made of the words of the given ones, all of them in turn, and always in the same way."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.changed_texts import changed_texts

WORDS = st.text("abcäß'…", min_size=1, max_size=5)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8), st.integers(0, 30))
def test_they_are_as_many_as_wanted_of_known_words_and_never_empty(texts: list[str], number: int) -> None:
    changed = changed_texts(texts, number, seed=1)
    assert len(changed) == number
    assert all(text.strip() for text in changed)
    known = set(" ".join(texts)) if any(" " not in text for text in texts) else {w for t in texts for w in t.split()}
    for text in changed:
        assert set(text if any(" " not in text for text in texts) else text.split()) <= known | {" "}
    assert changed_texts(texts, number, seed=1) == changed


def test_each_text_is_used_about_equally_often_and_is_changed() -> None:
    texts = [f"{letter}1 {letter}2 {letter}3 {letter}4 {letter}5 {letter}6" for letter in "abcdefghij"]
    changed = changed_texts(texts, 1_000, seed=2)
    first = Counter(text[0] for text in changed)
    assert set(first.values()) == {100}
    assert len(set(changed)) > 300
    assert sum(text in texts for text in changed) < 150
    assert any("c" in text for text in changed if text.startswith("a")), "halves of two texts are joined"


@pytest.mark.parametrize("texts", [["这部电影非常好看"], ["好"]])
def test_texts_without_spaces_are_changed_by_characters(texts: list[str]) -> None:
    changed = changed_texts(texts, 50, seed=3)
    assert all(text and set(text) <= set(texts[0]) for text in changed)
    assert len(set(changed)) > (10 if len(texts[0]) > 1 else 0)


def test_none_are_made_if_there_are_enough() -> None:
    assert changed_texts(["a b"], -5, seed=0) == []
