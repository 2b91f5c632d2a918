"""The texts that choose the checkpoint: a tenth of each label, and mostly the same ones while the data grow."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import LabelledTexts
from trainer.selection import MOST_TEXTS, hold_out


@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from("ab")), min_size=1, unique_by=lambda row: row[0]))
def test_each_text_is_in_one_part_with_its_label(rows: list[tuple[str, str]]) -> None:
    data = LabelledTexts([text for text, _ in rows], [label for _, label in rows])
    learnt, selection = hold_out(data)
    parts = [*zip(learnt.texts, learnt.labels, strict=True), *zip(selection.texts, selection.labels, strict=True)]
    assert sorted(parts) == sorted(rows)
    assert set(learnt.labels) == set(data.labels), "there is something to learn of each label"


def test_it_is_a_tenth_of_each_label_and_stays_so_while_the_data_grow() -> None:
    def data(rows: int) -> LabelledTexts:
        return LabelledTexts(
            [f"text {row}" for row in range(rows)], ["rare" if row % 10 == 0 else "often" for row in range(rows)]
        )

    _, before = hold_out(data(1_000))
    assert (before.labels.count("rare"), before.labels.count("often")) == (10, 90)
    _, after = hold_out(data(1_100))
    assert len(set(before.texts) & set(after.texts)) > 80
    assert len(hold_out(data(100_000))[1].texts) == MOST_TEXTS
