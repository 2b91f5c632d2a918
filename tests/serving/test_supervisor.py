"""The real Triton with a small random model: it answers, comes back when it is killed, and leaves nothing."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving import triton
from serving.repository import ModelRepository
from serving.supervisor import TritonSupervisor
from serving.triton_client import TextRefusedError, TritonClient, TritonUnavailableError
from settings import Settings
from tests.e2e.conftest import free_ports


def deployed_settings(bundle: Path, directory: Path) -> Settings:
    repository = ModelRepository(directory / "triton_repo")
    staging = repository.staging_directory(1)
    for file in bundle.iterdir():
        shutil.copy(file, staging)
    repository.publish(staging, 1)
    repository.deploy(1)
    return Settings(
        port=free_ports(), state_dir=directory / "state", model_repository=repository.root, runtime="onnxruntime"
    )


@contextlib.asynccontextmanager
async def running(settings: Settings, supervisor: TritonSupervisor | None = None) -> AsyncIterator[TritonClient]:
    supervising = asyncio.create_task((supervisor or TritonSupervisor(settings)).run())
    client = TritonClient(settings.triton_address)
    try:
        assert await client.wait_until_ready(60)
        yield client
    finally:
        await client.close()
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


def tritons(settings: Settings) -> list[psutil.Process]:
    flag = f"--grpc-port={settings.triton_grpc_port}"
    return [process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or [])]


async def ask_forever(client: TritonClient) -> None:
    while True:
        await client.classify(["good"], 10)


def test_answers_refuses_and_comes_back(bert_bundle: Path, tmp_path: Path) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)

    async def scenario() -> None:
        async with running(settings) as client:
            alone = await client.classify(["I love this product!"], 10)
            assert alone.version == 1
            assert alone.truncated == []
            long = "good " * 1000
            together = await client.classify([long, "I love this product!"], 10)
            assert together.labels[1] == alone.labels[0]
            assert together.scores[1] == pytest.approx(alone.scores[0], abs=1e-4)
            assert together.truncated == [0]

            # In one batch of the dynamic batcher, most likely; each request stands for itself in any case.
            asked = ["good", "", "I love this product!", " \t", "\ud800", "This is terrible."]
            answers = await asyncio.gather(*(client.classify([text], 10) for text in asked), return_exceptions=True)
            assert [isinstance(answer, TextRefusedError) for answer in answers] == [
                False, True, False, True, True, False,
            ]  # fmt: skip
            assert "TEXT[0] is empty" in str(answers[1])
            assert "TEXT[0] is not UTF-8" in str(answers[4])

            (before,) = tritons(settings)
            before.kill()
            with pytest.raises(TritonUnavailableError):
                await ask_forever(client)
            assert await client.wait_until_ready(60)
            assert (await client.classify(["I love this product!"], 10)).scores == pytest.approx(alone.scores)
            (after,) = tritons(settings)
            assert after.pid != before.pid

            # Its Python dies, and Triton itself does not notice.
            for stub in after.children():
                stub.kill()
            with pytest.raises(TritonUnavailableError):
                await ask_forever(client)
            assert not await client.is_ready()
            assert await client.wait_until_ready(60)
            (again,) = tritons(settings)
            assert again.pid != after.pid

    asyncio.run(scenario())
    assert tritons(settings) == []
    assert list(Path("/dev/shm").glob(f"{triton.shared_memory_prefix(settings)}*")) == []


def test_one_that_hangs_is_killed_and_comes_back(
    bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)

    async def scenario() -> None:
        supervisor = TritonSupervisor(settings)
        async with running(settings, supervisor) as client:
            (before,) = tritons(settings)
            deadline = time.monotonic() + 60
            while not supervisor._has_lived:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            with monkeypatch.context() as patch:
                patch.setattr("serving.diagnosis.LONGEST_SILENCE_S", 2.0)
                before.suspend()
                while before in tritons(settings):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)
            assert await client.wait_until_ready(60)
            assert before not in tritons(settings)

    asyncio.run(scenario())


def test_command_reaches_no_other_machine(tmp_path: Path) -> None:
    settings = Settings(port=18_000, state_dir=tmp_path, host="0.0.0.0")
    command = triton.command(settings)
    for service, port in (("grpc", 18_001), ("metrics", 18_002), ("http", 18_003)):
        assert f"--{service}-address=127.0.0.1" in command
        assert f"--{service}-port={port}" in command
    assert "--model-control-mode=explicit" in command


def test_tritons_python_has_numpy_1_and_this_ones_packages(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    triton.command(settings)
    code = "import numpy, openvino, tokenizers, serving.engine; print(numpy.__version__)"
    output = subprocess.run(
        ["python3", "-c", code], env=triton.environment(settings), cwd="/", check=True, capture_output=True, text=True
    ).stdout
    assert output.startswith("1.26.")


def test_one_dead_instance_of_two_is_noticed_too(bert_bundle: Path, tmp_path: Path) -> None:
    """The other one still answers, so requests fail and succeed by turns."""
    settings = deployed_settings(bert_bundle, tmp_path)
    config = settings.model_repository / "sentiment" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))

    async def scenario() -> None:
        async with running(settings) as client:
            (before,) = tritons(settings)
            first, _ = before.children()
            first.kill()
            deadline = time.monotonic() + 30
            healthy = 0
            while healthy < 10:  # rounds of calls at the same time, so that both instances have work
                assert time.monotonic() < deadline, "requests still fail"
                answers = await asyncio.gather(
                    *(client.classify(["good"], 10) for _ in range(4)), return_exceptions=True
                )
                failed = any(isinstance(answer, BaseException) for answer in answers)
                healthy = 0 if failed or before.is_running() else healthy + 1
                await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert tritons(settings) == []


def test_triton_listens_to_this_machine_alone(bert_bundle: Path, tmp_path: Path) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)

    async def listening() -> set[tuple[str, int]]:
        async with running(settings):
            (process,) = tritons(settings)
            return {
                (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                for running_process in (process, *process.children(recursive=True))
                for connection in running_process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }

    ports = (settings.triton_grpc_port, settings.triton_metrics_port)
    assert asyncio.run(listening()) == {("127.0.0.1", port) for port in ports}


def test_what_nothing_here_needs_of_triton_is_off(bert_bundle: Path, tmp_path: Path) -> None:
    """Shared memory above all, through which weaknesses of this build lead to its Python (SECURITY.md)."""
    settings = deployed_settings(bert_bundle, tmp_path)

    async def refusals() -> list[str]:
        async with running(settings), grpc.aio.insecure_channel(settings.triton_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return [
                await refusal(stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())),
                await refusal(
                    stub.SystemSharedMemoryRegister(
                        service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=1)
                    )
                ),
                await refusal(stub.TraceSetting(service_pb2.TraceSettingRequest())),
                await refusal(stub.LogSettings(service_pb2.LogSettingsRequest())),
            ]

    async def refusal(call: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        return str(refused.value.details())

    assert set(asyncio.run(refusals())) == {"This protocol is restricted, expecting header 'triton-grpc-protocol-off'"}


def test_triton_that_cannot_start_is_started_again_with_growing_pauses(
    bert_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)
    (settings.model_repository / "sentiment" / "1" / "model.onnx").write_bytes(b"no graph")

    async def scenario() -> None:
        supervising = asyncio.create_task(TritonSupervisor(settings).run())
        deadline = time.monotonic() + 60
        while "starting it again in 2.0 s" not in caplog.text:
            assert time.monotonic() < deadline
            assert not supervising.done()
            await asyncio.sleep(0.05)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())
    pauses = re.findall(r"exit status \d+\); starting it again in ([\d.]+) s", caplog.text)
    assert pauses == ["0.5", "1.0", "2.0"]
    assert tritons(settings) == []


def test_cancelled_while_the_model_is_loading_it_leaves_nothing(bert_bundle: Path, tmp_path: Path) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)

    async def scenario() -> None:
        supervising = asyncio.create_task(TritonSupervisor(settings).run())
        deadline = time.monotonic() + 30
        while not any("stub" in child.name() for process in tritons(settings) for child in process.children()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())
    assert tritons(settings) == []
    assert list(Path("/dev/shm").glob(f"{triton.shared_memory_prefix(settings)}*")) == []
