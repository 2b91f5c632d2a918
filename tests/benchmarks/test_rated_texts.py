"""The texts of the simulations: data files that the pipeline accepts, and labels by rating."""

from pathlib import Path

from benchmarks.rated_texts import LABELS, rated_texts, write_sample_part
from common.settings import Settings
from storage.feedback import text_hash
from trainer.dataset import load_dataset


def test_a_part_of_the_sample_can_be_trained_on(tmp_path: Path) -> None:
    settings = Settings(train_data=tmp_path / "train.csv", val_data=tmp_path / "val.csv", state_dir=tmp_path / "state")
    write_sample_part(settings, 300, seed=1)
    dataset = load_dataset(settings)
    assert len(dataset.train.texts) == 300
    assert dataset.labels == LABELS
    known = {text_hash(text) for text in dataset.train.texts}
    assert not known.intersection(rated_texts("film", known))


def test_ratings_near_zero_are_another_kind_of_texts() -> None:
    clear, faint = rated_texts("editorial"), rated_texts("editorial", least=0.1, below=0.5)
    # A text that occurs twice has two ratings.
    assert len(clear.keys() & faint.keys()) < 0.05 * min(len(clear), len(faint))
