"""The audit turns a first stage off when its labels differ too often, seldom otherwise, and on by a new certificate."""

import math
import random

import pytest

from serving.backend.audit import ALARM, LEAST_RECERTIFIED, SHARE, SUSPICIOUS_FOR, SUSPICIOUS_SHARE, Audit
from tests.serving.backend.test_two_stages import certificate

LIMIT = 0.01


def audit(seed: int = 0, limit: float = LIMIT) -> Audit:
    return Audit(certificate(0.9, limit), draw=random.Random(seed))


def read(audit: Audit, texts: int, risk: float) -> int:
    """Let the first stage read texts, a share `risk` of which get another label; return how many until it is off."""
    for number in range(texts):
        if audit.chooses():
            audit.add(0.95, differs=audit.draw.random() < risk)
        if not audit.is_on:
            return number + 1
    return texts


def test_a_share_within_the_limit_seldom_turns_the_first_stage_off() -> None:
    # On average at least ALARM audited texts pass until a false alarm, so few runs of a twentieth of them have one.
    runs = [audit(seed) for seed in range(200)]
    for run in runs:
        while run.is_on and run.texts < ALARM / 20:
            run.add(0.95, differs=run.draw.random() < LIMIT)
    assert sum(not run.is_on for run in runs) <= 200 / 20
    many = audit()
    read(many, 200_000, LIMIT / 2)
    assert many.is_on
    assert many.texts > 0.9 * SHARE * 200_000


@pytest.mark.parametrize("before", [0, 20_000])
def test_texts_of_another_kind_turn_it_off_within_2_000_of_them(before: int) -> None:
    runs = [audit(seed) for seed in range(60)]
    needed = sorted(read(run, 10_000, risk=0.1) for run in runs if read(run, before, LIMIT / 3) == before)
    assert len(needed) >= 58, "hardly any is off before"
    assert needed[int(0.9 * len(needed))] <= 2_000, "nine of ten times"
    assert needed[-1] < 10_000


def test_only_differences_that_clients_see_count() -> None:
    found = audit()
    for _ in range(1_000):
        found.add(0.5, differs=True)  # under the threshold, so the full model decided
    assert found.is_on
    assert (found.texts, found.differing) == (1_000, 0)


def test_more_texts_are_audited_at_first_and_after_a_difference() -> None:
    found = audit()
    for _ in range(2):
        assert sum(found.chooses() for _ in range(10_000)) == pytest.approx(10_000 * SUSPICIOUS_SHARE, rel=0.3)
        for _ in range(SUSPICIOUS_FOR):
            found.add(0.95, differs=False)
        assert sum(found.chooses() for _ in range(10_000)) == pytest.approx(10_000 * SHARE, rel=0.3)
        found.add(0.95, differs=True)
    assert found.is_on


def test_texts_that_no_stage_has_time_for_are_not_audited() -> None:
    found = audit()
    found.pending = 64
    assert not any(found.chooses() for _ in range(1_000))


def turned_off() -> Audit:
    found = audit()
    read(found, 100_000, risk=0.3)
    assert found.threshold == math.inf
    return found


def test_a_new_certificate_turns_it_on_at_a_threshold_that_keeps_the_limit() -> None:
    found = turned_off()
    before = found.texts, found.differing
    for number in range(LEAST_RECERTIFIED):
        assert not found.is_on
        found.add(0.999 if number % 4 else 0.9, differs=number % 4 == 0)  # wrong where it is less sure
    assert 0.9 < found.threshold <= 0.999
    assert (found.texts, found.differing) == before, "the full model decided these texts"
    assert read(found, 100_000, risk=0.3) < 10_000, "the new certificate is audited like the first one"


@pytest.mark.parametrize(
    ("confidence", "differs"),
    [pytest.param(0.999, 0.03, id="differs too often"), pytest.param(0.1, 0.0, id="decides too few texts")],
)
def test_without_a_new_certificate_it_stays_off_and_tries_with_new_texts(confidence: float, differs: float) -> None:
    found = turned_off()
    for _ in range(LEAST_RECERTIFIED):
        found.add(confidence, differs=found.draw.random() < differs)
    assert not found.is_on
    for _ in range(LEAST_RECERTIFIED):
        found.add(0.999, differs=False)
    assert found.is_on, "the texts before count no more"


def test_a_limit_that_half_of_the_texts_may_exceed_is_audited_too() -> None:
    assert read(audit(limit=0.6), 1_000, risk=1.0) == 1_000, "no share that is tried is higher"
