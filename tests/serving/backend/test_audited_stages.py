"""An engine audits its first stage: no answer waits for it, and a stage that differs too often is turned off."""

import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.backend.audit import Audit
from serving.backend.engine import Engine
from serving.backend.packing import PackedRows
from serving.model_repo.bundle import FIRST_STAGE
from tests.conftest import REFERENCE
from tests.gateway.conftest import until
from tests.serving.backend.test_two_stages import CORES, TEXTS, certify
from tests.serving.backend.test_two_stages import directory as directory  # a fixture

pytestmark = pytest.mark.usefixtures("bert_bundle")


@pytest.fixture
def agreeing(bert_bundle: Path, tmp_path: Path) -> Path:
    """A version whose first stage is the full model itself, so that they never differ."""
    agreeing = shutil.copytree(bert_bundle, tmp_path / "1")
    shutil.copytree(bert_bundle, agreeing / FIRST_STAGE)
    certify(agreeing, threshold=0.0)
    return agreeing


def audit_of(engine: Engine) -> Audit:
    assert engine.second_opinions is not None
    return engine.second_opinions.audit


def classify_until(engine: Engine, is_on: bool) -> None:
    for _ in range(200):
        engine.classify(TEXTS)
        if engine.totals().first_stage_on == is_on:
            return
    raise AssertionError(f"the first stage is {'off' if is_on else 'on'} after {200 * len(TEXTS):,} texts")


def test_a_first_stage_that_differs_is_turned_off_and_the_full_model_decides_all(
    directory: Path, bert_bundle: Path
) -> None:
    with Engine(directory, REFERENCE, CORES) as engine, Engine(bert_bundle, REFERENCE, CORES) as full:
        assert engine.totals().first_stage_on == 1
        classify_until(engine, is_on=False)
        totals = engine.totals()
        assert totals.audit_differing >= 2
        assert totals.audited_texts < totals.texts / 3
        decided = totals.first_stage_texts
        assert np.allclose(engine.classify(TEXTS).values, full.classify(TEXTS).values, atol=1e-4)
        until(lambda: audit_of(engine).pending == 0)
        totals = engine.totals()
        assert totals.first_stage_texts == decided, "texts of the audit are no answers"
        assert totals.texts % len(TEXTS) == 0
        assert totals.waiting_texts == 0


def test_a_first_stage_that_agrees_stays_on_and_comes_back_by_a_new_certificate(agreeing: Path) -> None:
    with Engine(agreeing, REFERENCE, CORES) as engine:
        for _ in range(20):
            engine.classify(TEXTS)
        until(lambda: audit_of(engine).pending == 0)
        totals = engine.totals()
        assert (totals.first_stage_on, totals.audit_differing) == (1, 0)
        assert totals.audited_texts > 20
        assert engine.first is not None
        audit_of(engine).threshold = engine.first.threshold = math.inf
        classify_until(engine, is_on=True)
        assert 0 < engine.first.threshold < 1
        before = engine.totals().first_stage_texts
        engine.classify(TEXTS)
        assert engine.totals().first_stage_texts > before


def test_no_answer_waits_for_the_audit(agreeing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(agreeing, REFERENCE, CORES) as engine:
        monkeypatch.setattr(audit_of(engine), "chooses", lambda: audit_of(engine).pending < 1)
        may_run, began = threading.Event(), threading.Event()
        graph = engine.full.graph

        class Held:
            prepares_each_shape = False

            def run(self, rows: PackedRows) -> Any:
                began.set()
                assert may_run.wait(20)
                return graph.run(rows)

        engine.full.graph = engine.full.graph_of_all_cores = Held()
        engine.submit(["a fine day"]).result(20)
        assert began.wait(20), "the text is audited"
        started = time.monotonic()
        for text in TEXTS[:20]:
            engine.submit([text]).result(20)  # by the other core
        assert time.monotonic() - started < 20
        assert engine.totals().audited_texts == 0
        may_run.set()
        until(lambda: engine.totals().audited_texts >= 1)


@pytest.mark.parametrize("part", ["tokenizer", "graph"])
def test_a_text_on_which_the_other_stage_fails_is_not_compared_and_others_are(
    agreeing: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("a panic")

    with Engine(agreeing, REFERENCE, CORES) as engine:
        audit = audit_of(engine)
        monkeypatch.setattr(audit, "chooses", lambda: True)
        with monkeypatch.context() as patch:
            patch.setattr(engine.full, part, Failing())
            if part == "graph":
                patch.setattr(engine.full, "graph_of_all_cores", Failing())
            assert len(engine.classify(TEXTS[:20]).values) == 20
            until(lambda: audit.pending == 0)
            assert audit.texts == 0
        engine.classify(TEXTS[:20])
        until(lambda: audit.pending == 0)
        assert audit.texts == 20
