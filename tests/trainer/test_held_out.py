from hypothesis import given
from hypothesis import strategies as st

from trainer.held_out import held_out

LEAST, REMAINING = 5, 10
TEXTS = st.dictionaries(st.text(), st.integers(0, 3), max_size=150)


def chosen(labels: dict[str, int]) -> set[str]:
    texts = {text: index for index, text in enumerate(labels)}
    return held_out(texts, list(labels.values()), LEAST, REMAINING)


@given(TEXTS, TEXTS)
def test_no_training_text_is_held_out_as_the_file_grows(first: dict[str, int], more: dict[str, int]) -> None:
    large = {
        label: [f"{label} {number}" for number in range(50)] for label in range(4)
    }  # so that each class can spare what its tenth holds
    whole = first | {text: label for label, texts in large.items() for text in texts}
    grown = whole | {text: label for text, label in more.items() if text not in whole}
    assert not (chosen(grown) - chosen(whole)) & whole.keys()


@given(TEXTS, st.randoms())
def test_the_order_of_rows_does_not_matter(labels: dict[str, int], random: object) -> None:
    items = list(labels.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert chosen(dict(items)) == chosen(labels)


@given(st.integers(15, 400), st.integers(0, 1_000))
def test_each_label_keeps_enough_on_both_sides(number: int, first: int) -> None:
    labels = {f"text {first + place}": 0 for place in range(number)}
    held = len(chosen(labels))
    assert held >= LEAST
    assert number - held >= REMAINING


def test_about_a_tenth_is_held_out() -> None:
    labels = {f"text {place}": place % 2 for place in range(20_000)}
    held = chosen(labels)
    for label in (0, 1):
        assert 900 < sum(labels[text] == label for text in held) < 1_100


def test_texts_that_differ_in_letter_case_or_blanks_are_on_one_side() -> None:
    labels = {f"{form} {place}": 0 for place in range(2_000) for form in ("a text", "A TEXT", "a  text")}
    held = chosen(labels)
    assert {" ".join(text.split()).casefold() for text in held}.isdisjoint(
        " ".join(text.split()).casefold() for text in labels.keys() - held
    )
