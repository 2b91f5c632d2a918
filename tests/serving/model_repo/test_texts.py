"""Which part of a text is tokenized: of all that people write, no token that the model reads is lost."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.model_repo.texts import CHARACTERS_PER_TOKEN, LONGEST_BLANKS, MAX_CHARACTERS, readable
from tests.conftest import SENTENCES, make_tokenizer

MAX_TOKENS = 32
ROOM = CHARACTERS_PER_TOKEN * MAX_TOKENS
TOKENIZERS: dict[str, Tokenizer] = {}
WORDS = st.sampled_from([word for sentence in SENTENCES for word in sentence.split()])
GAPS = st.sampled_from([" ", "\n", "\n\n", " \t "]) | st.integers(1, 500).map(lambda count: " " * count)


def tokens(text: str, architecture: str) -> tuple[list[int], bool]:
    if architecture not in TOKENIZERS:
        TOKENIZERS[architecture] = Tokenizer.from_str(make_tokenizer(architecture).backend_tokenizer.to_str())
        TOKENIZERS[architecture].enable_truncation(MAX_TOKENS)
    encoding = TOKENIZERS[architecture].encode(text)
    return encoding.ids, bool(encoding.overflowing)


@example([("product!", " " * 16)] * 40)
@given(st.lists(st.tuples(WORDS, GAPS), max_size=200))
def test_texts_of_words_get_the_tokens_that_they_would_get_uncut(parts: list[tuple[str, str]]) -> None:
    """However they are laid out: WordPiece has no tokens for blanks."""
    text = "".join(word + gap for word, gap in parts)
    read = readable(text, MAX_TOKENS)
    assert len(read.text) <= max(len(text), ROOM)
    ids, is_truncated = tokens(text, "bert")
    read_ids, read_is_truncated = tokens(read.text, "bert")
    assert read_ids == ids
    assert (read.is_cut or read_is_truncated) == is_truncated


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@given(text=st.text(max_size=ROOM))
def test_a_text_of_usual_length_is_not_touched(architecture: str, text: str) -> None:
    assert readable(text, MAX_TOKENS).text is text
    assert not readable(text, MAX_TOKENS).is_cut
    assert tokens(readable(text, MAX_TOKENS).text, architecture) == tokens(text, architecture)


@given(
    st.lists(st.sampled_from(["a", "word ", " ", " " * 100, "\u200b", "你", "."]) | st.text(max_size=30), max_size=300)
)
def test_whatever_it_is_no_more_than_the_room_is_tokenized_and_what_is_missing_is_told(parts: list[str]) -> None:
    text = "".join(parts)
    read = readable(text, MAX_TOKENS)
    assert len(read.text) <= ROOM
    visible = "".join(text.split())
    kept = "".join(read.text.split())
    assert visible.startswith(kept)
    assert read.is_cut == (visible != kept)


def test_a_word_after_any_number_of_blanks_is_read() -> None:
    read = readable(" " * (MAX_CHARACTERS - 4) + "good", MAX_TOKENS)
    assert read.text == " " * LONGEST_BLANKS + "good"
    assert not read.is_cut
    assert readable("good" + " " * (MAX_CHARACTERS - 4), MAX_TOKENS) == ("good" + " " * LONGEST_BLANKS, False)
    assert readable("a" * MAX_CHARACTERS, MAX_TOKENS) == ("a" * ROOM, True)
