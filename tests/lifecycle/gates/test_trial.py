"""The gate `budget`: a burst of other load does not reject a candidate, and slowness does."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lifecycle.gates import trial as trial_module
from lifecycle.gates.trial import Trial, within_budget
from lifecycle.jobs.candidate import costs
from serving.model_repo.bundle import FIRST_STAGE

BURST = 7
"""Rounds of a measurement."""


@pytest.fixture
def trials() -> Iterator[tuple[Trial, Trial]]:
    """Two processes that stand for Tritons; nothing is sent to them."""
    waiting = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield Trial("champion", waiting[0]), Trial("candidate", waiting[1])
    for process in waiting:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("slow_rounds", "passes"), [(BURST, True), (2 * BURST, True), (3 * BURST, False)])
def test_only_lasting_slowness_is_over_the_budget(
    slow_rounds: int, passes: bool, trials: tuple[Trial, Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.05] * slow_rounds + [0.01] * 3 * BURST)

    async def timed(address: str, _: Sequence[str]) -> tuple[float, float]:
        return (next(seconds), 0.1) if address == "candidate" else (0.01, 0.1)

    monkeypatch.setattr(trial_module, "_time", timed)
    monkeypatch.setattr(Trial, "memory_mib", lambda _: 50.0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    verdict = within_budget(*trials, ["a text"])
    assert verdict.passed == passes
    assert ("Over the budget" in verdict.message) == (not passes)


def test_another_base_model_is_not_judged_and_says_what_it_costs(
    trials: tuple[Trial, Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def timed(address: str, _: Sequence[str]) -> tuple[float, float]:
        return (0.05, 0.9) if address == "candidate" else (0.01, 0.1)

    monkeypatch.setattr(trial_module, "_time", timed)
    monkeypatch.setattr(Trial, "memory_mib", lambda tried: 500.0 if tried.address == "candidate" else 50.0)
    verdict = within_budget(*trials, ["a text"], "small became large")
    assert verdict.passed
    assert verdict.message == (
        "The base model changed, so its costs are reported and not judged: small became large (deployed version → "
        "candidate: 10.0 → 50.0 ms for a lone text, 5.0 times; 100.0 → 900.0 ms for 64 texts, 9.0 times; 50.0 → 500.0 "
        "MiB of memory, 10.0 times)."
    )
    assert costs([verdict]) == f". {verdict.message}".removesuffix(".")
    assert costs([within_budget(trials[0], trials[0], ["a text"])]) == ""


def test_a_trial_links_all_files_of_a_version_also_those_of_its_first_stage(tmp_path: Path) -> None:
    source, target = tmp_path / "1", tmp_path / "trial" / "1"
    files = {Path("model.onnx"): "full", Path(FIRST_STAGE, "model.onnx"): "first"}
    for file, content in files.items():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(content)
    for _ in range(2):  # a retraining that was interrupted finds the files of its last attempt
        trial_module._link_all(source, target)
        assert {file: (target / file).read_text() for file in files} == files
        assert sum(path.is_file() for path in target.rglob("*")) == len(files)
