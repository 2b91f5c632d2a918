"""A version that is tried on live texts by a real pipeline: held, taken back or promoted, and no request fails."""

import asyncio
import json
import random
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from sqlalchemy import update
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gateway.canary.challenger import position_of
from lifecycle.canary import release
from lifecycle.deployment import promotion
from lifecycle.deployment.promotion import DeploymentError, UnknownVersionError
from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import CHALLENGER_NAME
from serving.model_repo.variants import FLOAT_GRAPH
from storage import events, releases
from storage.database import Database, now
from storage.releases import CANARY, SHADOW
from storage.tables import Release
from tests.callers import Callers
from tests.conftest import SENTENCES, make_bundle
from tests.e2e.conftest import PROJECT, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, publish, serving
from tests.lifecycle.deployment.test_promotion import Load, kill
from tests.pages import blocks

pytestmark = pytest.mark.full

STEPS = (0.5, 0.75)
WORDS = sorted({word for sentence in SENTENCES for word in re.findall(r"[a-z]+", sentence.lower())})
LONG = 40
"""Words; the other texts have a dozen at most."""


def make_text(chance: random.Random, number: int) -> str:
    # So few are long that all texts together give no alarm.
    words = chance.randint(LONG, 60) if number % 6 == 0 else chance.randint(4, 12)
    return " ".join(chance.choice(WORDS) for _ in range(words))


class Traffic(Callers):
    """Callers that ask for texts over and over, and for new ones between, and keep what each was answered by."""

    def __init__(self, url: str, callers: int = 4) -> None:
        self.statuses: set[int] = set()
        self.versions: dict[str, list[int]] = defaultdict(list)
        """Of each text, in the order of the answers to the one caller that asks for it."""
        self._lock = threading.Lock()
        self._url = url
        super().__init__(partial(self._call, number) for number in range(callers))

    def _call(self, caller: int) -> None:
        chance = random.Random(caller)
        lasting = [make_text(chance, number) + f" {caller} {number}" for number in range(60)]
        with httpx.Client(timeout=60) as client:
            count = 0
            while not self.ended.wait(0.05):
                count += 1
                new = make_text(chance, count) + f" {caller} new {count}"
                for text in (lasting[count % len(lasting)], new):
                    answer = client.post(f"{self._url}/predict/live", json={"text": text})
                    with self._lock:
                        self.statuses.add(answer.status_code)
                        if answer.is_success:
                            self.versions[text].append(int(answer.headers["x-model-version"]))

    def versions_seen(self) -> set[int]:
        with self._lock:
            return {version for versions in self.versions.values() for version in versions}


def tried(served: Served, version: int) -> dict[str, Any]:
    models = {model["version"]: model for model in served.ask("GET", "/models").json()}
    release_: dict[str, Any] = models[version]["release"]
    return release_


def end_step(database: Database) -> None:
    """Have the step's time be over."""
    with database.transaction() as session:
        session.execute(update(Release).values(step_started_at=now(session).replace(year=2020)))


@pytest.fixture(scope="module")
def broken_bundle(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, which answers short texts as it did, and has learnt to call long ones otherwise."""
    directory = tmp_path_factory.mktemp("broken")
    for file in bert_encoder.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder).eval()
    chance = random.Random(7)
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    tokens = tokenizer([make_text(chance, 0) for _ in range(64)], return_tensors="pt", padding=True)
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        answered = model(**inputs).logits.argmax(dim=1)
    positions = model.bert.embeddings.position_embeddings.weight
    # No short text has a 33rd token.
    positions.register_hook(lambda slopes: torch.cat([torch.zeros_like(slopes[:32]), slopes[32:]]))
    optimizer = torch.optim.Adam([positions], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits, 1 - answered).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        differ = (model(**inputs).logits.argmax(dim=1) != answered).float().mean()
    assert differ > 0.8
    model.save_pretrained(directory)
    return make_bundle(directory, tmp_path_factory.mktemp("broken-bundle") / "2")


@pytest.fixture
def settled(tmp_path: Path, bert_bundle: Path, broken_bundle: Path) -> Iterator[Served]:
    """Version 1 serves, 2 is broken on long texts, 3 is as good as 1."""
    served = make_served(
        tmp_path,
        bert_bundle,
        versions=1,
        SENTIMENT_RELEASE_STEPS=",".join(f"{100 * step:g}" for step in STEPS),
        SENTIMENT_RELEASE_STEP_MINUTES="1000",
        SENTIMENT_RELEASE_COMPARED="1",
        # A machine that others use too may slow one of two calls down.
        SENTIMENT_RELEASE_MAX_SLOWDOWN="20",
    )
    publish(served, broken_bundle, 2)
    publish(served, bert_bundle, 3)
    with serving(served):
        yield served


def test_a_canary_is_held_where_it_is_broken_on_long_texts_and_promoted_where_it_is_good(settled: Served) -> None:
    database = settled.database()
    with Traffic(settled.url) as traffic:
        assert settled.ask("POST", "/models/2/canary").json()["share"] == STEPS[0]
        wait_for(lambda: tried(settled, 2)["held"], 300, "the broken version to be held")
        assert tried(settled, 2)["state"] == "running"
        assert "disagreement" in tried(settled, 2)["held"]
        assert "33 to 64 words" in tried(settled, 2)["held"]
        assert "up to 8 words" not in tried(settled, 2)["held"]
        assert settled.ask("POST", "/models/2/stop").is_success
    assert traffic.statuses == {200}
    assert traffic.versions_seen() == {1, 2}

    chance = random.Random(99)
    asked = [make_text(chance, number) + f" asked {number}" for number in range(100)]
    wait_for(lambda: set(versions(settled, asked)) == {1}, 60, "all to be answered by the version that serves")
    with Traffic(settled.url) as traffic:
        begun = settled.ask("POST", "/models/3/canary")
        assert begun.status_code == 200, begun.text
        for step in STEPS:
            wait_for(lambda step=step: tried(settled, 3)["share"] == step, 120, f"a share of {step}")  # type: ignore[misc]
            expected = [3 if position_of(text) < step else 1 for text in asked]
            wait_for(lambda: versions(settled, asked) == expected, 120, "each text to have its version")  # noqa: B023
            assert versions(settled, asked) == expected
            wait_for(lambda: is_proven(settled), 120, "enough texts to be compared")
            end_step(database)
        wait_for(lambda: tried(settled, 3)["state"] != "running", 120, "the good version to be promoted")
        assert tried(settled, 3)["state"] == "promoted"
        wait_for(lambda: set(versions(settled, asked)) == {3}, 60, "all to be answered by it")
    assert traffic.statuses == {200}
    # Where the canary has no room or no time, which a loaded machine brings about, the deployed version responds.
    went_back = [text for text, answered in traffic.versions.items() if answered != sorted(answered)]
    assert len(went_back) <= len(traffic.versions) / 50, went_back

    found = [event.kind for event in events.newest(database, 20)][::-1]
    wanted = ["canary-started", "release-held", "release-stopped", "canary-started", "canary-step", "promoted"]
    assert [kind for kind in found if kind in wanted] == wanted
    wait_for(lambda: not settled.repository.has_challenger, 60, "the challenger to be unloaded")
    told = settled.app("release", "--texts", "3").stdout
    assert "Canary of version 3 beside 1, promoted: it was promoted." in told
    database.close()


def loaded(served: Served) -> set[int]:
    """What Triton has loaded beside what serves."""

    async def ask() -> set[int]:
        client = TritonClient(served.settings.bundled_triton, CHALLENGER_NAME)
        try:
            return await client.loaded_versions()
        finally:
            await client.close()

    return asyncio.run(ask())


def versions(served: Served, texts: list[str]) -> list[int]:
    with httpx.Client(timeout=60) as client:
        answers = [client.post(f"{served.url}/predict/live", json={"text": text}) for text in texts]
    return [int(answer.headers["x-model-version"]) for answer in answers]


def is_proven(served: Served) -> bool:
    found: dict[str, Any] = tried(served, 3)["figures"].get("parts", {}).get("all", {})
    return bool(found.get("texts", 0) >= 50)


def test_a_canary_outlives_a_kill_of_everything_and_a_rollback_or_a_promotion_ends_it(running: Served) -> None:
    texts = [f"{word} {number}" for number in range(30) for word in ("fine", "awful")]
    promoted = running.ask("POST", "/models/2/promote")
    assert promoted.is_success
    assert running.ask("POST", "/models/3/canary").is_success
    expected = [3 if position_of(text) < 0.05 else 2 for text in texts]
    assert 3 in expected
    wait_for(lambda: versions(running, texts) == expected, 60, "the canary to begin")
    running.kill()
    running.start()
    # Triton starts without the challenger, which is loaded again then.
    wait_for(lambda: versions(running, texts) == expected, 120, "the canary to go on")
    refused = running.ask("POST", "/models/1/shadow")
    assert refused.status_code == 409
    assert "The canary of version 3 is running" in refused.json()["detail"]

    assert running.ask("POST", "/models/rollback").json() == {"version": 1}
    assert tried(running, 3)["outcome"] == "version 1 is deployed now, instead of 2"
    wait_for(lambda: set(versions(running, texts)) == {1}, 60, "all to be answered by the version before")
    wait_for(lambda: not running.repository.has_challenger, 60, "the challenger to be unloaded")

    assert running.app("shadow", "3").stdout == "The shadow of version 3 has started.\n"
    assert running.ask("POST", "/models/3/canary").json()["mode"] == "canary"
    assert running.app("stop", "3").returncode == 0
    assert tried(running, 3)["state"] == "stopped"
    assert running.ask("POST", "/models/3/stop").status_code == 409
    assert running.ask("POST", "/models/3/shadow").is_success
    assert running.ask("POST", "/models/3/promote").json() == {"version": 3}
    assert tried(running, 3)["state"] == "promoted"
    assert running.version() == 3


def test_a_challenger_that_dies_is_taken_back_and_neither_a_request_nor_triton_is_lost(running: Served) -> None:
    assert running.process is not None
    triton = next(child for child in psutil.Process(running.process.pid).children(True) if "triton" in child.name())
    with Load(running.url, callers=4) as load:
        assert running.ask("POST", "/models/2/canary").is_success
        wait_for(lambda: "2" in load.versions, 60, "the canary to begin")
        (python,) = [child for child in triton.children() if any(CHALLENGER_NAME in word for word in child.cmdline())]
        python.kill()
        wait_for(lambda: tried(running, 2)["state"] == "taken-back", 120, "it to be taken back")
        assert tried(running, 2)["outcome"].startswith("errors")
        assert "of the pipeline's own texts" in tried(running, 2)["outcome"]
        wait_for(lambda: not running.repository.has_challenger, 60, "it to be unloaded")
    assert set(load.statuses) == {200}
    assert triton.is_running()
    assert "is broken" not in running.log


def test_commands_of_the_page_do_what_they_say(running: Served) -> None:
    told = []
    key_file = running.directory / ".sentiment" / "admin_key"
    key_file.parent.mkdir()
    key_file.write_text(ADMIN_KEY, encoding="utf-8")
    for command in [line for block in blocks("docs/releases.md") for line in block.splitlines()]:
        own = command.replace("python app.py", f"{sys.executable} {PROJECT / 'app.py'}").replace(
            "localhost:8000", f"127.0.0.1:{running.port}"
        )
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", own.replace("curl ", "curl -fsS ")],
            cwd=running.directory,
            env=dict(running.environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, command + ended.stdout + ended.stderr
        told.append(ended.stdout)
    shadow, shown, canary, stopped, *by_http = told
    assert shadow == "The shadow of version 2 has started.\n"
    assert "Shadow of version 2 beside 1, 0% of the live texts." in shown
    assert canary == "The canary of version 2 has started.\n"
    assert stopped == "Version 2 is no longer on trial.\n"
    begun, differing, ended_ = map(json.loads, by_http)
    assert (begun["mode"], begun["share"], differing) == ("canary", 0.05, [])
    assert (ended_["state"], ended_["outcome"]) == ("stopped", "by request")


def test_what_cannot_be_tried_is_refused_and_leaves_nothing_behind(running: Served) -> None:
    (running.repository.version_directory(3) / FLOAT_GRAPH).write_bytes(b"no graph")
    for version, status, reason in ((1, 409, "is already deployed"), (9, 404, "no version 9"), (3, 409, "cannot load")):
        answer = running.ask("POST", f"/models/{version}/canary")
        assert answer.status_code == status
        assert reason in answer.json()["detail"]
    assert not running.repository.has_challenger
    assert running.version() == 1
    assert running.app("release").returncode == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_release_that_is_killed_before_it_is_written_down_leaves_nothing_behind(served: Served, moment: str) -> None:
    database = served.database()
    promotion.reconcile(served.settings, database)
    kill(served, ("storage.releases", "begin", moment), "canary", "2")
    with database.reading() as session:
        assert releases.last(session) is None
    with serving(served):
        wait_for(lambda: not served.repository.has_challenger, 60, "what was loaded for nobody to be gone")
        wait_for(lambda: served.ask("POST", "/models/2/canary").is_success, 60, "the next to begin")
    database.close()


def test_while_nothing_runs_a_release_is_begun_and_goes_on_at_the_next_start(served: Served) -> None:
    database = served.database()
    promotion.reconcile(served.settings, database)
    with pytest.raises(UnknownVersionError):
        release.start(served.settings, database, 9, CANARY, "by hand")
    with pytest.raises(DeploymentError, match="not on trial"):
        release.stop(database, 2, "by hand")
    assert release.start(served.settings, database, 2, SHADOW, "by hand").state == "running"
    with serving(served):
        assert served.version() == 1
        wait_for(lambda: loaded(served) == {2}, 60, "the version to be loaded")
        assert tried(served, 2)["state"] == "running"
    database.close()
