"""What the benchmark says of two stages is what they do; the stream shows a first stage that is turned off."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.models import BenchmarkModel
from benchmarks.rated_texts import LABELS
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.sections import stages
from serving.backend.engine import Engine
from serving.model_repo.bundle import FIRST_STAGE, Bundle
from serving.model_repo.repository import ModelRepository
from tests.conftest import REFERENCE
from tests.serving.backend.test_two_stages import TEXTS
from tests.serving.backend.test_two_stages import directory as directory  # a fixture

ROWS = [(text, LABELS[number % 2]) for number, text in enumerate(TEXTS * 4)]


class OneVersion(ModelRepository):
    """A repository whose only version is a given bundle."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle.parent)
        self._bundle = bundle

    def version_directory(self, version: int) -> Path:  # noqa: ARG002 - the same for each
        return self._bundle


@pytest.fixture
def run(directory: Path, bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(stages, "rated_texts", lambda *_: dict(enumerate(ROWS)))
    monkeypatch.setattr(stages, "distinct_texts", iter)  # other letters are other tokens of this model
    monkeypatch.setattr(stages, "TURNS", 1)
    monkeypatch.setattr(stages, "STEP", 64)
    for name in ("_THRESHOLD_TEXTS", "_CERTIFYING_TEXTS"):
        monkeypatch.setattr(stages, name, len(ROWS) // 3)
    model = BenchmarkModel(
        "a pair", OneVersion(directory), 1, tmp_path, one_stage=OneVersion(bert_bundle), unknown=ROWS
    )
    results = Results("base-trained", "a pair", {}, {})
    return Run(model, results, Mock(), tmp_path, seconds=0.1, repeats=1, progress=print)


def test_figures_are_those_of_the_stages_and_the_audit_turns_a_bad_one_off(run: Run, tmp_path: Path) -> None:
    stages.measure(run)
    reviews = run.results.find(stages.SECTION, "reviews", "as certified")
    assert reviews is not None
    with (
        Engine(run.model.directory / FIRST_STAGE, REFERENCE, 2) as first,
        Engine(run.model.alone, REFERENCE, 2) as full,
    ):
        own, whole = (engine.classify(TEXTS).values for engine in (first, full))
    found = Bundle.load(run.model.directory).first_stage
    assert found is not None
    sure = own.max(axis=1) >= found.threshold
    differs = sure & (own.argmax(axis=1) != whole.argmax(axis=1))
    assert reviews.figures["decided_share"] == [pytest.approx(sure.mean())]
    assert reviews.figures["differing_share"] == [pytest.approx(differs.mean())]
    assert differs.mean() > 0.1

    splits = [item for item in run.results.of_section(stages.SECTION) if "splits" in item.group]
    assert len(splits) == 2
    # 5 % of the splits may be over the limit; more than 17 would be with a probability of 1 %.
    assert all(item.figures["over_limit"][0] <= 17 for item in splits)

    steps = [item for item in run.results.of_section(stages.SECTION) if item.group.startswith("stream")]
    assert [item.name.split(",")[0] for item in steps] == ["reviews"] * 12 + ["tweets"] * 12
    is_on = [item.figures["first_stage_on"][0] for item in steps]
    assert is_on == sorted(is_on, reverse=True)
    assert is_on[-1] == 0
    after = [item.figures for item, on in zip(steps, is_on, strict=True) if not on][1:]
    assert {figures["differing_share"][0] for figures in after} == {0.0}
    assert {figures["decided_share"][0] for figures in after} == {0.0}
    assert np.sum([item.figures["audited_texts"] for item in steps]) >= 3

    stages.plot(run.results, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_a_version_with_one_stage_is_left_out(run: Run, bert_bundle: Path, tmp_path: Path) -> None:
    run.model = BenchmarkModel("one", OneVersion(bert_bundle), 1, tmp_path)
    stages.measure(run)
    assert run.results.notes == ["stages: the model has one stage."]
    assert not run.results.measurements
    stages.plot(run.results, tmp_path / "stages.png")
    assert not (tmp_path / "stages.png").exists()
