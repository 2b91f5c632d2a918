"""The backend within a real Triton."""

import asyncio
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import MAX_BATCH_SIZE
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving

pytestmark = pytest.mark.full

STREAMS, REQUESTS_EACH = 32, 500
LISTS = 300


async def ask_for_labels(address: str) -> list[list[str]]:
    """The names of the outputs that came with each answer."""
    async with InferenceServerClient(address) as client:

        async def stream(number: int) -> list[list[str]]:
            came = []
            for count in range(REQUESTS_EACH):
                text = InferInput("TEXT", [1, 1], "BYTES")
                text.set_data_from_numpy(np.array([[f"text {count} of {number}".encode()]], dtype=object))
                answer = await client.infer(
                    "sentiment", [text], outputs=[InferRequestedOutput("LABEL")], client_timeout=60
                )
                came.append([output.name for output in answer.get_response().outputs])
            return came

        streams = await asyncio.gather(*(stream(number) for number in range(STREAMS)))
        return [names for came in streams for names in came]


def test_a_client_may_want_some_of_the_outputs(tmp_path: Path, bert_bundle: Path) -> None:
    with serving(make_served(tmp_path, bert_bundle, versions=1)) as served:
        came = asyncio.run(ask_for_labels(f"127.0.0.1:{served.port + 1}"))
        # Those left to Triton to throw away have let it die, in some thousands of answers by two threads.
        assert came == [["LABEL"]] * (STREAMS * REQUESTS_EACH)
        assert "starting it again" not in served.log


def figure(served: Served, name: str) -> float:
    """A metric of the engine, of all versions."""
    metrics = httpx.get(f"{served.url}/metrics", timeout=20).text
    return sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", metrics, flags=re.MULTILINE))


async def give_up_lists(address: str) -> int:
    """Ask for many lists of long texts, leave after the first answer; returns the number of texts."""
    client = TritonClient(address)
    lists = [[f"{number} {place} " + "word " * 300 for place in range(MAX_BATCH_SIZE)] for number in range(LISTS)]
    calls = [asyncio.create_task(client.classify(texts, 300)) for texts in lists]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (await client.classify(["still there?"], 60)).version == 1
    await client.close()
    return LISTS * MAX_BATCH_SIZE


def test_texts_that_nobody_waits_for_are_not_computed(tmp_path: Path, bert_bundle: Path) -> None:
    with serving(make_served(tmp_path, bert_bundle, versions=1)) as served:
        asked = asyncio.run(give_up_lists(served.settings.bundled_triton))
        wait_for(lambda: figure(served, "sentiment_engine_waiting_texts") == 0, 120, "the engine to have nothing to do")
        wait_for(lambda: figure(served, "sentiment_engine_texts_total") > 0, 20, "the engine's figures")
        assert figure(served, "sentiment_engine_texts_total") < asked / 2
