"""Asks Triton over gRPC: `python -m benchmarks.grpc_load ADDRESS STREAMS SECONDS FILE`.

Each stream sends the next line of the file, a JSON list of texts, when its last request is answered. In a process
of its own, as a program that uses Triton would be.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.http_load import summary
from serving.triton_client import TritonClient, TritonTimeoutError, TritonUnavailableError

_TIMEOUT_S = 30.0


async def run(address: str, streams: int, seconds: float, requests: Iterator[list[str]]) -> str:
    """Load Triton for the time given; returns the summary."""
    client = TritonClient(address)
    latencies: list[float] = []
    answered_at: list[float] = []
    refused = 0

    async def stream() -> None:
        nonlocal refused
        while True:
            sent = time.perf_counter()
            try:
                await client.classify(next(requests), _TIMEOUT_S)
            except (TritonUnavailableError, TritonTimeoutError):
                refused += 1
            else:
                answered_at.append(time.perf_counter())
                latencies.append(answered_at[-1] - sent)

    started = time.perf_counter()
    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    elapsed = time.perf_counter() - started
    answer = summary(latencies, answered_at, refused, 0, elapsed)
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
    for task in ended:
        task.result()  # a stream ends by itself only on an error that nobody expects
    return answer


def main(arguments: Sequence[str]) -> None:
    """Load Triton and tell what came of it."""
    address, streams, seconds, file = arguments
    requests = [json.loads(line) for line in Path(file).read_bytes().splitlines()]
    print(asyncio.run(run(address, int(streams), float(seconds), itertools.cycle(requests))))


if __name__ == "__main__":
    main(sys.argv[1:])
