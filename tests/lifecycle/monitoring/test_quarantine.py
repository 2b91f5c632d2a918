"""Quarantine: a source that turns labels is found and named; honest ones, also those that only correct, are not."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import evaluation_data
from lifecycle.gates.training_data import merge
from lifecycle.monitoring.quarantine import LEAST_ROWS, Contradictions, Rate, collect, examine
from storage import events
from storage.database import Database
from storage.events import EventKind
from storage.feedback import LabelledText, add_feedback, is_held_out, text_hash
from storage.feedback_sources import release
from trainer.dataset import Dataset, LabelledTexts, fingerprint

LABELS = ("Negative", "Positive")
ERRORS = 0.1
CONFIDENT = 0.6
CONFIDENT_ERRORS = 0.15
"""Of a model like the packaged one: how many answers are wrong, how many right ones are confident, and wrong ones."""
SETTINGS = Settings()


def right(text: str) -> str:
    """A label that anybody can tell from the text's own number."""
    return LABELS[int(text.split()[-1]) % 2]


def wrong(text: str) -> str:
    return LABELS[right(text) == LABELS[0]]


def drawn(text: str, name: str) -> float:
    return int(text_hash(f"{name} {text}")[:8], 16) / 16**8


def is_error(text: str, errors: float = ERRORS) -> bool:
    return drawn(text, "error") < errors


def model(errors: float = ERRORS, confident_errors: float = CONFIDENT_ERRORS) -> Callable[[Sequence[str]], Answers]:
    """A model that errs on a share of texts, mostly without being confident."""

    def answer(texts: Sequence[str]) -> Answers:
        labels, confidence = [], []
        for text in texts:
            is_wrong = is_error(text, errors if text.startswith("new") else ERRORS)
            share = (confident_errors if text.startswith("new") else CONFIDENT_ERRORS) if is_wrong else CONFIDENT
            labels.append(wrong(text) if is_wrong else right(text))
            confidence.append(0.97 if drawn(text, "confidence") < share else 0.7)
        scores = np.array(confidence, dtype=np.float32)
        return Answers(7, labels, scores, np.stack([scores, 1 - scores], axis=1))

    return answer


def texts(count: int, words: str, which: Callable[[str], bool] = lambda _: True) -> list[str]:
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        if which(text := f"{words} {number}"):
            found.append(text)
    return found


def dataset(train: int = 1_000, val: int = 400) -> Dataset:
    learned, judged = (
        LabelledTexts(made, [right(text) for text in made])
        for made in (texts(train, "training text"), texts(val, "validation text"))
    )
    return Dataset(learned, judged, LABELS, fingerprint(learned, judged), [])


def tell(database: Database, source: str, told: Sequence[str], label: Callable[[str], str] = right) -> None:
    add_feedback(database, [LabelledText(text, label(text)) for text in told], source)


def examined(
    database: Database, given: Dataset, ask: Callable[[Sequence[str]], Answers], settings: Settings = SETTINGS
) -> list[str]:
    examination = collect(settings, database, given)
    if examination is None:
        return []
    data = evaluation_data(settings, database, given)
    return examine(database, examination, data, ask(data.texts), ask)


def test_a_key_that_turns_a_cluster_is_named_and_nothing_of_it_is_learnt(database: Database) -> None:
    given = dataset()
    tell(database, "key:attacker", texts(2_000, "cluster"), wrong)
    tell(database, "key:website", texts(300, "honest"))
    assert examined(database, given, model()) == ["key:attacker"]
    (event,) = events.newest(database, 5)
    assert event.kind == EventKind.SOURCE_QUARANTINED
    assert event.message.startswith("The feedback of key:attacker was put into quarantine: ")
    assert "confident predictions of version 7; the" in event.message
    assert merge(SETTINGS, database, given).by_source.keys() == {"key:website"}
    assert examined(database, given, model()) == []


def test_where_it_hides_among_right_labels_it_is_named_too(database: Database) -> None:
    cluster = texts(2_000, "cluster")
    tell(database, "key:attacker", cluster, lambda text: wrong(text) if drawn(text, "turned") < 0.4 else right(text))
    assert examined(database, dataset(), model()) == ["key:attacker"]


@pytest.mark.parametrize(
    ("name", "told", "label"),
    [
        ("all labels", texts(500, "honest"), right),
        ("corrections only", texts(500, "honest", is_error), right),
        (
            "a tenth by mistake",
            texts(500, "honest"),
            lambda text: wrong(text) if drawn(text, "m") < 0.1 else right(text),
        ),
        ("few rows", texts(LEAST_ROWS - 1, "honest"), wrong),
    ],
)
def test_honest_sources_are_learnt_from(
    database: Database, name: str, told: list[str], label: Callable[[str], str]
) -> None:
    tell(database, "anonymous", told, label)
    assert examined(database, dataset(), model()) == [], name


def test_where_the_model_is_confidently_wrong_a_trusted_source_speaks_for_the_others(database: Database) -> None:
    ask = model(errors=0.5, confident_errors=0.8)
    tell(database, "key:website", texts(500, "new kind"))
    tell(database, "import:labels.csv", texts(2_000, "new labelled"))
    assert examined(database, dataset(), ask) == []


def test_trusted_sources_are_never_put_into_quarantine(database: Database) -> None:
    for source in ("admin", "console:anna", "import:labels.csv", "legacy:api"):
        tell(database, source, texts(200, f"of {source}"), wrong)
    assert collect(SETTINGS, database, dataset()) is None


def test_labels_against_the_files_or_a_trusted_source_are_evidence_without_the_model(database: Database) -> None:
    given = dataset()

    def unsure(asked: Sequence[str]) -> Answers:
        answers = model()(asked)
        return Answers(7, answers.labels, np.full(len(asked), 0.6, dtype=np.float32), answers.probabilities)

    tell(database, "key:against-the-file", given.train.texts[:100], wrong)
    tell(database, "admin", texts(100, "told"))
    tell(database, "key:against-the-admin", texts(100, "told"), wrong)
    tell(database, "key:agrees", [*given.train.texts[:100], *texts(100, "told")])
    assert examined(database, given, unsure) == ["key:against-the-admin", "key:against-the-file"]


def test_two_sources_cannot_accuse_an_honest_third_whom_the_model_believes(database: Database) -> None:
    told = texts(300, "honest", lambda text: not is_error(text))
    tell(database, "key:honest", told)
    for source in ("key:one", "key:two"):
        tell(database, source, told, wrong)
    assert examined(database, dataset(), model()) == ["key:one", "key:two"]


def test_after_a_release_only_newer_rows_count(database: Database) -> None:
    given = dataset()
    tell(database, "key:odd", texts(300, "cluster"), wrong)
    assert examined(database, given, model()) == ["key:odd"]
    release(database, "key:odd", "by the test")
    tell(database, "key:odd", texts(100, "honest"))
    assert examined(database, given, model()) == []
    tell(database, "key:odd", texts(800, "another cluster"), wrong)
    assert examined(database, given, model()) == ["key:odd"]


def test_few_rows_or_chance_are_no_evidence() -> None:
    assert not Rate(29, 29).is_above(0.25)
    assert Rate(30, 30).is_above(0.25)
    assert not Rate(30, 100).is_above(0.25)
    assert Rate(300, 600).is_above(0.25)
    assert not Rate(600, 800).is_above(Rate(0, 0).share + 0.25), "nothing is known of what is usual"


@pytest.mark.parametrize(
    ("confident", "contradicted", "expected"),
    [
        # As measured on reviews with a model that is rarely confident (73 % right): turned labels, corrections, all.
        (Rate(160, 160), Rate(160, 1_500), True),
        (Rate(6, 6), Rate(6, 300), False),
        (Rate(2, 24), Rate(2, 78), False),
    ],
)
def test_a_model_that_is_rarely_confident_tells_turned_labels_from_corrections(
    confident: Rate, contradicted: Rate, expected: bool
) -> None:
    usual = Contradictions(Rate(6, 94), Rate(6, 344), Rate(88, 956))
    assert Contradictions(confident, contradicted, Rate(0, 0)).exceeds(usual) is expected


def test_what_one_other_source_adds_is_capped_and_others_rows_stay(database: Database) -> None:
    given = dataset(train=1_000)
    settings = Settings(max_source_share=0.05)
    tell(database, "anonymous", texts(40, "honest", lambda text: not is_held_out(text_hash(text))))
    tell(database, "key:website", texts(30, "website", lambda text: not is_held_out(text_hash(text))))
    tell(database, "admin", texts(100, "of the admin", lambda text: not is_held_out(text_hash(text))))
    assert merge(settings, database, given).by_source == {"anonymous": 40, "key:website": 30, "admin": 100}
    tell(database, "anonymous", texts(400, "flood", lambda text: not is_held_out(text_hash(text))), wrong)
    merged = merge(settings, database, given)
    most = int(0.05 * (len([text for text in given.train.texts if text in merged.train.texts]) + 100))
    assert merged.by_source == {"anonymous": most, "key:website": 30, "admin": 100}
    assert any(text.startswith("honest") for text in merged.train.texts), "a flood does not drive them all out"
    assert merge(settings, database, given) == merged
    assert merge(Settings(max_source_share=0), database, given).by_source == {"admin": 100}


def test_a_source_that_is_not_trusted_changes_no_label_that_is_known(database: Database) -> None:
    given = dataset(train=100)
    before = merge(SETTINGS, database, given)
    tell(database, "key:attacker", [*given.train.texts, *given.val.texts], wrong)
    assert merge(SETTINGS, database, given) == before
    tell(database, "admin", texts(50, "told"))
    told = merge(SETTINGS, database, given)
    tell(database, "key:attacker", texts(50, "told"), wrong)
    assert merge(SETTINGS, database, given) == told


def test_a_source_that_is_not_trusted_judges_no_model(database: Database) -> None:
    tell(database, "key:attacker", texts(300, "cluster"), wrong)
    tell(database, "anonymous", texts(300, "cluster"), wrong)
    assert evaluation_data(SETTINGS, database, dataset()).feedback.texts == []
    trusting = Settings(trusted_sources="key:attacker")
    assert len(evaluation_data(trusting, database, dataset()).feedback.texts) > 50


def test_of_a_text_with_several_labels_the_one_of_most_sources_is_learnt_and_of_as_many_the_first(
    database: Database,
) -> None:
    one, two = texts(2, "text", lambda text: not is_held_out(text_hash(text)))
    tell(database, "key:first", [one, two])
    tell(database, "key:second", [one, two], wrong)
    tell(database, "key:third", [two], wrong)
    merged = merge(SETTINGS, database, dataset())
    learnt = dict(zip(merged.train.texts, merged.train.labels, strict=True))
    assert (learnt[one], learnt[two]) == (right(one), wrong(two))
    assert merged.by_source == {"key:first": 1, "key:second": 1}
