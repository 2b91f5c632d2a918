"""The pipeline's own texts: which replies of a Triton speak against a version, and which say nothing."""

from collections.abc import Iterator

import grpc
import pytest

from lifecycle.deployment import probe
from lifecycle.deployment.probe import MOST_FAILED, TEXTS, Probing
from serving.model_repo.protocol import CHALLENGER_NAME, MODEL_NAME
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    fake = FakeTriton()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "AGAIN_S", 0.0)
    monkeypatch.setattr(probe, "CALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(probe, "LONGEST_SILENCE_S", 1.0)


def confirm(probing: Probing, *tritons: FakeTriton) -> str | None:
    return probing.confirm([f"127.0.0.1:{triton.port}" for triton in tritons])


def test_one_that_answers_each_text_is_good(triton: FakeTriton) -> None:
    assert confirm(Probing(1), triton) == ""
    assert triton.calls == [[text] for text in TEXTS]
    assert {len(text.split()) > 30 for text in TEXTS} == {True, False}


def test_one_that_fails_or_refuses_is_at_fault(triton: FakeTriton) -> None:
    triton.error = grpc.StatusCode.INTERNAL
    failed = f"it fails on {MOST_FAILED} of {MOST_FAILED} of the pipeline's own texts: secret: /opt/models"
    assert confirm(Probing(1), triton) == failed
    assert len(triton.calls) == 2 * MOST_FAILED, "a dead model takes seconds to fail each text, so a few decide"
    triton.behave()
    triton.refused = {TEXTS[0], TEXTS[1]}
    assert (confirm(Probing(1), triton) or "").startswith("it fails on 2 of 20 of the pipeline's own texts")


def test_a_failure_that_is_over_at_the_next_probe_is_none(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    triton.error = grpc.StatusCode.INTERNAL
    monkeypatch.setattr("lifecycle.deployment.probe.time.sleep", lambda _seconds: triton.behave())
    probing = Probing(1)
    assert confirm(probing, triton) == ""
    assert not probing.is_in_doubt


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection lost"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room"),
        (grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size"),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model"),
    ],
)
def test_a_triton_that_is_down_or_full_says_nothing_of_the_version(
    triton: FakeTriton, error: grpc.StatusCode, details: str
) -> None:
    triton.error, triton.error_details = error, details
    probing = Probing(1)
    for _ in range(3):
        assert confirm(probing, triton) is None
    assert not probing.is_in_doubt


def test_another_version_that_answers_says_nothing(triton: FakeTriton) -> None:
    assert confirm(Probing(2), triton) is None


def test_one_that_runs_late_while_it_answers_others_says_nothing_and_one_that_answers_nobody_hangs(
    triton: FakeTriton,
) -> None:
    triton.delay_s = 0.6
    probing = Probing(1)
    for _ in range(4):
        triton.answered_calls += 1  # another caller's
        assert confirm(probing, triton) is None
    triton.held, triton.delay_s = {TEXTS[0], TEXTS[1]}, 0
    triton.may_answer.clear()
    confirm(probing, triton)  # what the first ones left under way may still be answered
    found = [confirm(probing, triton) for _ in range(4)]
    assert probing.is_in_doubt
    assert (found[-1] or "").startswith("it is loaded, but has responded to no client for")
    triton.may_answer.set()


def test_of_several_tritons_all_must_fail(triton: FakeTriton) -> None:
    other = FakeTriton()
    other.start()
    try:
        triton.error = grpc.StatusCode.INTERNAL
        assert confirm(Probing(1), triton, other) == ""
        other.error = grpc.StatusCode.INTERNAL
        assert (confirm(Probing(1), triton, other) or "").startswith("it fails on 6 of 6 of the")
    finally:
        other.stop()


def test_beside_another_version_only_texts_count_that_this_answers(triton: FakeTriton) -> None:
    def probing() -> Probing:
        return Probing(triton.challenger, CHALLENGER_NAME, beside=MODEL_NAME)

    assert confirm(probing(), triton) == ""
    triton.challenger_error = grpc.StatusCode.INTERNAL
    assert (confirm(probing(), triton) or "").startswith("it fails on 3 of 3 of the pipeline's own texts")
    triton.error = grpc.StatusCode.INTERNAL
    assert confirm(probing(), triton) is None
