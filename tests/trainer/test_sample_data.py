import csv
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.settings import Settings
from trainer.dataset import DatasetError, load_dataset
from trainer.sample_data import Domain, read_ratings, write_sample_data


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("domain", "count"), [("film", 10605), ("product", 3708), ("tweet", 4200), ("editorial", 5190)]
)
def test_ratings_of_each_domain_are_clean(domain: Domain, count: int) -> None:
    ratings = read_ratings(domain)
    assert len(ratings) == count
    for text, rating in ratings:
        assert -4 <= rating <= 4
        assert text == " ".join(text.split()) != ""
        assert not any(slip in text for slip in ("&amp;", "&#38;", "&lt;", "''", "\ufffd"))


def test_ratings_keep_what_belongs_to_the_texts() -> None:
    texts = {text for text, _ in read_ratings("film")}
    assert "Absorbing character study by André Turpin." in texts
    assert 'a screenplay more ingeniously constructed than "Memento"' in texts


def _settings(directory: Path) -> Settings:
    return Settings(train_data=directory / "train.csv", val_data=directory / "val.csv", state_dir=directory / "state")


def test_files_pass_the_checks_of_training_without_a_note(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    counts = write_sample_data(settings.train_data, settings.val_data, seed=13)
    dataset = load_dataset(settings)
    assert dataset.notes == []
    assert dataset.labels == ("Negative", "Positive")
    assert counts.train == {"Positive": 6065, "Negative": 5676}
    assert counts.val == {"Positive": 674, "Negative": 631}
    assert len(dataset.train.texts) == sum(counts.train.values())
    assert len(dataset.val.texts) == sum(counts.val.values())


def test_labels_are_those_of_the_ratings(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "train.csv", tmp_path / "val.csv", seed=13)
    labels: dict[str, set[str]] = {}
    for text, rating in read_ratings("film") + read_ratings("product"):
        if abs(rating) >= 0.5:
            labels.setdefault(text, set()).add("Positive" if rating > 0 else "Negative")
    for name in ("train.csv", "val.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert labels[row["text"]] == {row["label"]}


def test_no_text_comes_twice_even_in_another_letter_case(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    write_sample_data(settings.train_data, settings.val_data, seed=13)
    dataset = load_dataset(settings)
    texts = [text.casefold() for text in dataset.train.texts + dataset.val.texts]
    assert len(set(texts)) == len(texts)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for directory, seed in (("a", 13), ("b", 13), ("c", 14)):
        write_sample_data(tmp_path / directory / "train.csv", tmp_path / directory / "val.csv", seed)
    first, second, other = (files_in(tmp_path / directory) for directory in "abc")
    assert first == second
    assert first["train.csv"] != other["train.csv"]
    assert first["val.csv"] != other["val.csv"]


def test_licence_goes_with_each_file(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "train.csv", tmp_path / "val.csv", seed=13)
    assert set(files_in(tmp_path)) == {"train.csv", "val.csv", "train.csv.license", "val.csv.license"}
    for name in ("train.csv.license", "val.csv.license"):
        notice = (tmp_path / name).read_text(encoding="utf-8")
        assert "vaderSentiment==3.3.2" in notice
        assert "Copyright (c) 2016 C.J. Hutto" in notice
        assert "THE SOFTWARE IS PROVIDED" in notice


def test_what_an_interrupted_run_left_out_is_added(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "train.csv", tmp_path / "val.csv", seed=13)
    complete = files_in(tmp_path)
    (tmp_path / "val.csv").unlink()
    write_sample_data(tmp_path / "train.csv", tmp_path / "val.csv", seed=13)
    assert files_in(tmp_path) == complete


def test_data_of_the_user_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("text,label\nmine,Positive\n")
    with pytest.raises(PipelineError, match=r"val\.csv exists and is not the sample data of this seed. Move it away"):
        write_sample_data(tmp_path / "train.csv", tmp_path / "val.csv", seed=13)
    assert files_in(tmp_path) == {"val.csv": b"text,label\nmine,Positive\n"}


def test_place_that_cannot_be_written_is_named_and_no_file_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of a directory")
    with pytest.raises(PipelineError, match=r"cannot be written: .*file.*: "):
        write_sample_data(tmp_path / "train.csv", tmp_path / "file" / "val.csv", seed=13)
    assert set(files_in(tmp_path)) == {"file"}


def test_one_file_for_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="Use two files"):
        write_sample_data(tmp_path / "data.csv", tmp_path / "." / "data.csv", seed=13)


def test_the_samples_validation_file_does_not_evaluate_a_model_of_other_texts(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    write_sample_data(settings.train_data, settings.val_data, seed=13)
    own = "".join(f"screen {number} is {label},{label}\n" for number in range(40) for label in ("good", "bad"))
    settings.train_data.write_text("text,label\n" + own)
    with pytest.raises(DatasetError, match=r"val\.csv is the validation file of the sample data, but .*Delete it"):
        load_dataset(settings)
    settings.val_data.write_text("text,label\n" + own.replace("screen", "battery"))
    assert load_dataset(settings).labels == ("bad", "good")
