"""The backend within a real Triton."""

import asyncio
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from tests.lifecycle.conftest import make_served, serving

STREAMS, REQUESTS_EACH = 32, 500


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
