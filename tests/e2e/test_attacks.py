"""Attacks on the engine, briefly, on a real pipeline: others are answered, rightly, by the same version.

The other attacks have tests of their own in `tests/gateway/http/test_strangers_http.py`. The times that attacks cost
others depend on the machine; `python -m tests.e2e.attacks` measures them.
"""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from serving.backend.engine import Engine
from tests.conftest import LABELS, REFERENCE
from tests.e2e import attacks
from tests.e2e.attacks import OPEN, Attack, Target, attacked

pytestmark = pytest.mark.full

ATTACKS = [
    (OPEN, attacks.try_page_without_pause),
    (OPEN, attacks.batches_of_short_texts),
    (OPEN, attacks.long_live_texts),
    (OPEN, attacks.live_from_many_addresses),
    (OPEN, attacks.short_deadlines),
]
SECONDS = 2.0
MOST_GROWTH_MIB = 600.0
TEXTS = ["good", "what a waste of two hours", "the screen is bright " * 4_700]


@contextmanager
def descriptors() -> Iterator[None]:
    """Room for the attacks' own connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, bert_bundle: Path) -> Iterator[dict[str, Target]]:
    """By what the gateway asks of those without a key."""
    with descriptors(), ExitStack() as stack:
        yield {
            access: stack.enter_context(attacked(tmp_path_factory.mktemp(access), bert_bundle, access))
            for access in dict.fromkeys(access for access, _ in ATTACKS)
        }


@pytest.fixture(scope="module")
def engine(bert_bundle: Path) -> Iterator[Engine]:
    with Engine(bert_bundle, REFERENCE, cores=1) as engine:
        yield engine


@pytest.mark.parametrize(("access", "attack"), ATTACKS, ids=[attack.__name__ for _, attack in ATTACKS])
def test_others_are_answered(targets: dict[str, Target], engine: Engine, access: str, attack: Attack) -> None:
    target = targets[access]
    seen = target.attack(attack, SECONDS)
    assert not seen.moved
    assert sum(seen.outcomes.values()) > 0, "nothing was attacked"
    assert len(seen.during_ms) > sum(seen.failures.values()), "nobody else was answered"
    assert seen.peak_mib - seen.memory_mib < MOST_GROWTH_MIB
    # After the attack, as before: the right labels, by the same version.
    for text, values in zip(TEXTS, engine.classify(TEXTS).values, strict=True):
        answer = target.served.ask("POST", "/predict/live", json={"text": text})
        assert answer.status_code == 200, answer.text
        told = answer.json()["predictions"]
        assert told["label"]["0"] == LABELS[values.argmax()]
        assert np.isclose(told["score"]["0"], values.max(), atol=2e-4)
