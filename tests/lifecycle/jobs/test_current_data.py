"""The hourly check while a data file is damaged: it uses kept data, tells once, and notices when the file is back."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.jobs import check as check_module
from lifecycle.jobs.check import check
from lifecycle.jobs.job_process import run_job
from serving.model_repo.repository import ModelRepository
from serving.model_repo.texts import MAX_CHARACTERS
from storage import events, jobs
from storage.database import Database
from storage.sampled_predictions import AnsweredText
from tests.lifecycle.conftest import hollow_bundle, publish_as
from trainer import file_changes, kept_data
from trainer.dataset import DatasetError, load_dataset
from trainer.rows import FileRows

LABELS = ("Negative", "Positive")


def rows(name: str, count: int = 40) -> str:
    return "text,label\n" + "".join(f"{name} text {number},{LABELS[number % 2]}\n" for number in range(count))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with two good files."""
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(rows(name))
    return Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        model_repository=tmp_path / "triton_repo",
        state_dir=tmp_path / "state",
    )


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A deployed model, version 1, that is wrong for half of the texts; the texts of the last check."""
    asked: list[str] = []

    def answer(_address: str, texts: list[str]) -> Answers:
        asked[:] = texts
        probabilities = np.array([(0.9, 0.1)] * len(texts), np.float32)
        return Answers(1, [LABELS[0]] * len(texts), probabilities[:, 0], probabilities)

    monkeypatch.setattr(check_module, "batch_predict", answer)
    monkeypatch.setattr(file_changes, "PAUSES_S", (0.0, 0.0))
    return asked


def checked(settings: Settings, database: Database) -> dict[str, object]:
    """The result of one check that ended well."""
    job = jobs.begin(database, jobs.enqueue(database, jobs.CHECK, "by the test").id)
    assert job is not None
    outcome = check(settings, database, job)
    with database.transaction() as session:
        jobs.end(session, job.id, outcome)
    return outcome.result


def _answered(text: str) -> AnsweredText:
    probabilities = np.array((0.1, 0.9), "<f4").tobytes()
    return AnsweredText(text, LABELS[1], probabilities, 1, False, time.monotonic())


def told(database: Database) -> list[str]:
    """The events about the data, the oldest first: each its kind and the first problem."""
    found = reversed(events.newest(database, 100))
    return [f"{event.kind}: {event.message}" for event in found if event.kind in ("data-unfit", "data-fit")]


def mails(database: Database) -> list[str]:
    return [mail.subject for mail in events.due_mails(database) if "data files" in mail.subject]


def test_a_file_is_emptied_filled_with_garbage_removed_and_restored(
    settings: Settings, database: Database, served: list[str]
) -> None:
    good = settings.model_copy(update={"min_accuracy": 0.4, "min_macro_f1": 0.2})
    assert "decision" not in checked(good, database)
    validation = list(served)
    noise = random.Random(0)
    damages: dict[str, Callable[[], object]] = {
        "is empty": lambda: settings.train_data.write_bytes(b""),
        "train.csv": lambda: settings.train_data.write_bytes(noise.randbytes(5_000)),
        "no such file": settings.train_data.unlink,
    }
    for number, (words, damage) in enumerate(damages.items(), start=1):
        damage()
        for _ in range(3):
            result = checked(settings, database)
            assert served == validation
            assert result["stale"]
            assert result["decision"] == "No retraining: the data files cannot be used."
        events_so_far = told(database)
        assert len(events_so_far) == number
        assert events_so_far[-1].startswith("data-unfit: The data files cannot be used; checks go on with the data of ")
        assert words in events_so_far[-1]
        assert mails(database) == ["The data files cannot be used; checks go on with the data of version 1."] * number
    assert jobs.waiting(database, jobs.RETRAIN) is None

    settings.train_data.write_text(rows("train") + rows("new").partition("\n")[2])
    result = checked(settings, database)
    waiting = jobs.waiting(database, jobs.RETRAIN)
    assert waiting is not None
    assert result["decision"] == f"A retraining was requested: job {waiting.id}."
    checked(settings, database)
    assert len(told(database)) == 4
    assert told(database)[-1].startswith(
        "data-fit: The data files can be used again: 80 training texts and 40 validation texts. "
        "Version 1 has 40 and 40, so there are other texts to learn from: "
    )
    assert len(mails(database)) == 3

    settings.train_data.unlink()
    checked(settings, database)
    assert len(mails(database)) == 4, "the same trouble is told again after it was over"


def test_a_trouble_that_only_grows_is_told_once(settings: Settings, database: Database) -> None:
    checked(settings, database)
    for bad in range(40, 1_200, 190):
        settings.train_data.write_text(rows("train") + ",Positive\n" * bad + "a text,\n" * (bad // 3))
        checked(settings, database)
    assert len(told(database)) == len(mails(database)) == 1
    assert "more than the share SENTIMENT_MAX_REJECTED=0.1" in told(database)[0]
    settings.train_data.write_text("text,label\n" + "".join(f"text {number},Positive\n" for number in range(40)))
    checked(settings, database)
    assert len(told(database)) == len(mails(database)) == 2


def test_a_retraining_of_unfit_data_fails_with_the_same_words(settings: Settings, database: Database) -> None:
    checked(settings, database)
    settings.train_data.write_bytes(b"")
    checked(settings, database)
    (event,) = events.newest(database, 1, "data-unfit")
    _, problem, _ = event.message.splitlines()
    with pytest.raises(DatasetError) as caught:
        load_dataset(settings)
    assert problem in str(caught.value).splitlines()
    ended = run_job(settings, database, jobs.enqueue(database, jobs.RETRAIN, "by the test").id)
    assert (ended.state, problem in ended.error.splitlines()) == (jobs.FAILED, True)
    assert not (settings.state_dir / "retraining").exists()


def test_a_validation_file_that_vanishes_is_not_replaced_by_training_texts(
    tmp_path: Path, database: Database, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(model_repository=tmp_path / "triton_repo", state_dir=tmp_path / "state")
    for path in (settings.train_data, settings.val_data):
        path.parent.mkdir(exist_ok=True)
        path.write_text(rows(path.name))
    checked(settings, database)
    validation = list(served)
    settings.val_data.unlink()
    assert load_dataset(settings).is_held_out
    checked(settings, database)
    assert served == validation
    assert f"{settings.val_data}: no such file, and version 1 was made with it." in told(database)[0]
    settings.val_data.write_text(rows(settings.val_data.name))
    checked(settings, database)
    assert told(database)[1].endswith("40 training texts and 40 validation texts, the data of version 1.")


def test_without_kept_data_the_check_fails_as_before(settings: Settings, database: Database) -> None:
    settings.train_data.unlink()
    ended = run_job(settings, database, jobs.enqueue(database, jobs.CHECK, "by the test").id)
    assert (ended.state, "train.csv: no such file" in ended.error) == (jobs.FAILED, True)
    assert told(database) == []


def test_a_copy_with_other_labels_does_not_judge_a_version_that_was_imported_without_data(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    checked(settings, database)  # it keeps a copy
    repository = ModelRepository(settings.model_repository)
    publish_as(repository, hollow_bundle(tmp_path), 1, labels=("ham", "spam"))
    repository.deploy(1)
    settings.train_data.unlink()
    ended = run_job(settings, database, jobs.enqueue(database, jobs.CHECK, "by the test").id)
    assert (ended.state, "version 1 was imported" in ended.result["reason"]) == (jobs.SKIPPED, True)
    assert told(database) == []


def test_while_one_file_is_good_no_check_reads_the_kept_texts(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.csv").write_text(rows("train"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        train_data=tmp_path / "train.csv", model_repository=tmp_path / "triton_repo", state_dir=tmp_path / "state"
    )
    checked(settings, database)
    monkeypatch.setattr(pq, "read_table", lambda _: pytest.fail("the kept texts were read"))
    checked(settings, database)
    assert told(database) == []


@pytest.mark.parametrize("damage", [b"", b"PAR1 and more", None])
def test_a_damaged_copy_counts_as_none_and_is_written_again(
    settings: Settings, database: Database, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    checked(settings, database)
    copy = settings.state_dir / kept_data.FILE
    assert copy.stat().st_mode & 0o777 == 0o600
    copy.write_bytes(copy.read_bytes()[:-50] if damage is None else damage)
    assert kept_data.kept_data(settings) is None
    assert "cannot be read" in caplog.text
    checked(settings, database)
    facts = kept_data.kept_facts(settings)
    assert facts is not None
    assert facts.version == 1


def test_a_disk_that_refuses_the_copy_and_the_list_does_not_stop_the_check(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    settings.state_dir.write_text("no directory")
    assert checked(settings, database)["stale"]
    assert f"The data of version 1 cannot be kept in {settings.state_dir / kept_data.FILE}: " in caplog.text
    assert "The list of rejected rows" in caplog.text


def test_the_copy_is_bounded_and_a_fair_sample(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_data, "MOST_BYTES", 3 * MAX_CHARACTERS)
    by_label = "".join(f"{label} {number} {'x' * 1_000},{label}\n" for label in LABELS for number in range(400))
    settings.train_data.write_text(f"text,label\n{by_label}")
    checked(settings, database)
    facts, kept = kept_data.kept_facts(settings), kept_data.kept_data(settings)
    assert facts is not None
    assert kept is not None
    assert facts.texts == {"train": 800, "val": 40}
    assert 280 < len(kept.train.texts) < 300
    assert 0.4 < kept.train.labels.count("Positive") / len(kept.train.labels) < 0.6
    assert kept.val == load_dataset(settings).val
    assert pq.read_metadata(settings.state_dir / kept_data.FILE).num_rows == len(kept.train.texts) + 40


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    settings: Settings,
    database: Database,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checked(settings, database)
    replaced = 0
    read = FileRows.read

    def read_and_replace(file: FileRows, *arguments: Any) -> None:
        nonlocal replaced
        read(file, *arguments)
        if file.path == settings.val_data and replaced < times:  # the training file has been read by then
            replaced += 1
            new = settings.train_data.with_suffix(".new")
            new.write_text(rows(f"train {replaced}"))
            new.rename(settings.train_data)

    monkeypatch.setattr(FileRows, "read", read_and_replace)
    result = checked(settings, database)
    assert caplog.text.count("train.csv changed during the reading") == min(times, 2)
    if times < 3:
        assert told(database) == []
        assert "data_problems" not in result
    else:
        assert f"{settings.train_data} was changed each time while it was read. Write it under " in told(database)[0]
    assert load_dataset(settings).train.texts[0] == f"train {times} text 0"
