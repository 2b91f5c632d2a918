import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.pages.leave_one_out import EXPLAINED, MOST_PIECES, MOST_WORK, are_small, moved, pieces
from gateway.load_control.backlog import work_of
from serving.model_repo.texts import text_fault


@given(st.text(max_size=400) | st.integers(0, 300).map(lambda count: " word" * count))
def test_pieces_are_the_text_and_each_variant_lacks_one_of_them(text: str) -> None:
    found = pieces(text)
    assert len(found) <= MOST_PIECES
    start = len(text) - len(text.lstrip())
    assert text[start:] == "".join(piece.text + piece.gap for piece in found)
    for piece in found:
        if piece.variant is not None:
            assert text_fault(piece.variant) is None
            assert len(piece.variant) == len(text) - len(piece.text) - len(piece.gap)


def test_neighbours_of_a_long_text_are_left_out_together() -> None:
    found = pieces(" ".join(str(number) for number in range(2 * MOST_PIECES)))
    assert len(found) == MOST_PIECES
    assert found[0].text == "0 1"


def test_what_a_word_did_is_the_change_without_it() -> None:
    found = pieces("not bad at all")
    words = moved(found, 0.9, [0.2, 0.95, 0.89, 0.7])
    assert [word.text for word in words] == ["not", "bad", "at", "all"]
    assert [word.change for word in words] == pytest.approx([0.7, -0.05, 0.01, 0.2])
    assert [word.strength for word in words] == [3, 1, 0, 2]


def test_if_all_changes_are_small_the_largest_of_them_are_marked() -> None:
    words = moved(pieces("not bad at all"), 0.9, [0.888, 0.9001, 0.907, 0.9])
    assert [word.strength for word in words] == [1, 0, 1, 0]
    assert are_small(words)
    assert not are_small(moved(pieces("not bad"), 0.9, [0.88, 0.9]))


def test_changes_that_are_shown_as_zero_are_not_marked() -> None:
    assert [word.strength for word in moved(pieces("not bad"), 0.9, [0.8996, 0.9])] == [0, 0]


def test_a_word_without_which_nothing_is_left_moved_nothing() -> None:
    (word,) = moved(pieces("fine"), 0.9, [])
    assert word.change is None
    assert word.strength == 0


@given(st.integers(1, 100_000), st.integers(1, 3_000), st.sampled_from([" ", "\n\n", " " * 3_000]))
def test_however_long_a_text_is_its_variants_are_bounded(length: int, word: int, gap: str) -> None:
    text = (("a" * word + gap) * (length // (word + len(gap)) + 1))[:length]
    found = pieces(text)
    variants = [piece.variant for piece in found if piece.variant is not None]
    assert sum(map(work_of, variants)) <= MOST_WORK + work_of(text)
    assert max(map(len, variants), default=0) <= 2 * EXPLAINED
    start = len(text) - len(text.lstrip())
    assert text[start:] == "".join(piece.text + piece.gap for piece in found)
