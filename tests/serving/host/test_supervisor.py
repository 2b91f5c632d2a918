"""The real Triton with a small random model: it answers, comes back when it is killed, and leaves nothing."""

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from common.settings import Settings
from common.triton_addresses import socket_path
from serving.client.errors import TextRefusedError, TritonUnavailableError
from serving.client.sockets import is_listening
from serving.client.triton_client import TritonClient
from serving.host import supervisor as supervisor_module
from serving.host import triton
from serving.host.leftovers import close_to_others, sweep
from serving.host.supervisor import TritonSupervisor
from serving.model_repo.repository import ModelRepository
from tests.e2e.conftest import PROJECT, free_ports, wait_for


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


async def is_ready_soon(client: TritonClient) -> bool:
    """Whether the model is ready within a minute."""
    deadline = time.monotonic() + 60
    while not await client.is_ready():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


@contextlib.asynccontextmanager
async def running(settings: Settings, supervisor: TritonSupervisor | None = None) -> AsyncIterator[TritonClient]:
    supervising = asyncio.create_task((supervisor or TritonSupervisor(settings)).run())
    client = TritonClient(settings.triton_address)
    try:
        assert await is_ready_soon(client)
        yield client
    finally:
        await client.close()
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


def tritons(settings: Settings) -> list[psutil.Process]:
    flag = f"--backend-config=python,shm-region-prefix-name={triton.shared_memory_prefix(settings)}"
    return [process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or [])]


def shared_memory(settings: Settings) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{triton.shared_memory_prefix(settings)}*"))


async def ask_forever(client: TritonClient) -> None:
    while True:
        await client.classify(["good"], 10)


@pytest.mark.full
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
            assert await is_ready_soon(client)
            assert (await client.classify(["I love this product!"], 10)).scores == pytest.approx(alone.scores)
            (after,) = tritons(settings)
            assert after.pid != before.pid

            # Its Python dies, and Triton itself does not notice.
            for stub in after.children():
                stub.kill()
            with pytest.raises(TritonUnavailableError):
                await ask_forever(client)
            assert not await client.is_ready()
            assert await is_ready_soon(client)
            (again,) = tritons(settings)
            assert again.pid != after.pid

    asyncio.run(scenario())
    assert tritons(settings) == []
    assert shared_memory(settings) == []


@pytest.mark.full
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
                patch.setattr("serving.host.watchdog.LONGEST_SILENCE_S", 2.0)
                before.suspend()
                while before in tritons(settings):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)
            assert await is_ready_soon(client)
            assert before not in tritons(settings)

    asyncio.run(scenario())


@pytest.mark.full
def test_triton_of_a_killed_pipeline_does_not_take_the_sockets_of_the_next(bert_bundle: Path, tmp_path: Path) -> None:
    """It ends in order, for as long as it has requests, and removes its sockets by name at last."""
    settings = deployed_settings(bert_bundle, tmp_path)
    code = (
        "import subprocess, sys; from serving.host.die_with_parent import command_dying_with_parent as dying; "
        "subprocess.run(dying(sys.argv[2:], own_group=True), cwd=sys.argv[1])"
    )
    command, environment = triton.command(settings), triton.environment(settings)
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(triton.working_directory(settings)), *command], cwd=PROJECT, env=environment
    )
    wait_for(lambda: is_listening(settings.bundled_triton), 60, "Triton")
    (left,) = psutil.Process(killed.pid).children()
    killed.kill()
    killed.wait()
    left.suspend()  # its end takes seconds; before, the end of its parent would have resumed it

    async def scenario() -> None:
        async with running(settings):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.resume()
                left.wait(60)
            assert is_listening(settings.bundled_triton)

    asyncio.run(scenario())
    assert shared_memory(settings) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another account")
def test_what_another_account_left_in_shared_memory_is_passed_over() -> None:
    """As after a start with `sudo`: names begin with the same prefix, and only root may remove what is root's."""
    prefix = f"sentiment-test-{os.getpid()}-"
    code = f"""
import os, pathlib
from serving.host.leftovers import close_to_others, sweep
ended = os.fork()
if not ended:
    os._exit(0)
os.waitpid(ended, 0)
os.setgid(54321)
os.setuid(54321)
own = pathlib.Path("/dev/shm/{prefix}own")
own.touch()
own.chmod(0o644)
close_to_others("{prefix}")
assert own.stat().st_mode & 0o777 == 0o600
sweep(ended, "{prefix}")
"""
    left = Path(f"/dev/shm/{prefix}left")
    left.touch()
    left.chmod(0o644)  # whatever umask this process has
    try:
        ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert list(Path("/dev/shm").glob(f"{prefix}*")) == [left]
        assert stat.S_IMODE(left.stat().st_mode) == 0o644
    finally:
        left.unlink()


def test_what_is_no_segment_is_left_alone_even_if_it_is_named_like_one(tmp_path: Path) -> None:
    """Any account can put a link into /dev/shm that leads to a private file of this account."""
    prefix = f"sentiment-test-{os.getpid()}-"
    private = tmp_path / "private"
    private.touch()
    private.chmod(0o644)
    link, loop, directory = (Path(f"/dev/shm/{prefix}{name}") for name in ("link", "loop", "directory"))
    with subprocess.Popen(["true"], start_new_session=True) as ended:
        pass
    try:
        link.symlink_to(private)
        loop.symlink_to(loop)
        directory.mkdir()
        close_to_others(prefix)
        sweep(ended.pid, prefix)
        assert stat.S_IMODE(private.stat().st_mode) == 0o644
        assert sorted(Path("/dev/shm").glob(f"{prefix}*")) == sorted([link, loop, directory])
    finally:
        link.unlink(missing_ok=True)
        loop.unlink(missing_ok=True)
        directory.rmdir()


def test_command_reaches_no_other_machine(tmp_path: Path) -> None:
    settings = Settings(port=18_000, state_dir=tmp_path, host="0.0.0.0")
    command = triton.command(settings)
    assert {"--grpc-address=unix:grpc", "--metrics-address=unix:metrics:18001", "--allow-http=false"} <= set(command)
    assert "--model-control-mode=explicit" in command


def test_tritons_python_has_numpy_1_and_this_ones_packages(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    triton.command(settings)
    code = "import numpy, openvino, tokenizers, serving.backend.engine; print(numpy.__version__)"
    output = subprocess.run(
        ["python3", "-c", code],
        env=triton.environment(settings),
        cwd=triton.working_directory(settings),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.startswith("1.26.")


@pytest.mark.full
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


@pytest.mark.full
def test_triton_has_no_port_and_others_can_neither_enter_its_directory_nor_read_its_memory(
    bert_bundle: Path, tmp_path: Path
) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)

    async def scenario() -> None:
        async with running(settings):
            (process,) = tritons(settings)
            everything = [process, *process.children(recursive=True)]
            assert not [connection for one in everything for connection in one.net_connections("inet")]
            directory = socket_path(settings.bundled_triton).parent
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            memory = shared_memory(settings)
            assert memory
            for path in (*filter(Path.is_socket, directory.iterdir()), *memory):
                assert path.stat().st_mode & 0o077 == 0, path
            assert not any(word in " ".join(process.cmdline()).lower() for word in ("key", "secret", "restricted"))

    asyncio.run(scenario())


def test_tritons_environment_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_ADMIN_KEY", "the-admin-key")
    monkeypatch.setenv("SENTIMENT_RUNTIME", "openvino")
    environment = triton.environment(Settings(state_dir=tmp_path))
    assert "the-admin-key" not in environment.values()
    assert environment["SENTIMENT_RUNTIME"] == "openvino"


def test_shared_memory_that_others_could_read_is_closed_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """As where the kernel has no seccomp, with which it is made closed."""
    segment = Path("/dev/shm/sentiment-test-of-modes-1")
    segment.touch()
    segment.chmod(0o644)
    try:
        close_to_others("sentiment-test-of-modes-")
        assert stat.S_IMODE(segment.stat().st_mode) == 0o600
        assert "could be read by the machine's other accounts" in caplog.text
        caplog.clear()
        close_to_others("sentiment-test-of-modes-")
        assert caplog.text == ""
    finally:
        segment.unlink()


@pytest.mark.full
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
    assert shared_memory(settings) == []


def test_a_watchdog_that_raised_watches_on(
    bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = deployed_settings(bert_bundle, tmp_path)
    raised: list[int] = []

    async def until_broken(client: TritonClient, process_id: int, on_life: Callable[[], None]) -> str:
        if not raised:
            raised.append(process_id)
            raise KeyError("nobody expected this")
        assert await is_ready_soon(client)
        on_life()
        return "as the test says"

    monkeypatch.setattr(supervisor_module, "until_broken", until_broken)

    async def scenario() -> None:
        supervising = asyncio.create_task(TritonSupervisor(settings).run())
        deadline = time.monotonic() + 90
        while "Triton is broken (as the test says) and is killed." not in caplog.text:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())
    assert caplog.text.count("The task 'Triton watchdog' failed") == 1
    assert tritons(settings) == []


def test_a_second_signal_leaves_no_process_of_triton(
    bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for Triton to end in order, which this one does not do."""
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"pathlib.Path({str(ready)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    monkeypatch.setattr(triton, "command", lambda _settings: [sys.executable, "-c", code])
    settings = deployed_settings(bert_bundle, tmp_path)
    supervisor = TritonSupervisor(settings)
    (settings.state_dir / "triton").mkdir(parents=True, exist_ok=True)

    async def scenario() -> list[psutil.Process]:
        supervising = asyncio.create_task(supervisor.run())
        await asyncio.to_thread(wait_for, lambda: ready.exists() and ready.read_text() != "", 60, "the child")
        assert supervisor._process is not None
        processes = [psutil.Process(supervisor._process.pid), psutil.Process(int(ready.read_text()))]
        supervising.cancel()
        await asyncio.sleep(0.3)
        assert processes[0].is_running()
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        await asyncio.wait_for(supervisor._process.wait(), 20)  # otherwise its transport stays open
        return processes

    _, alive = psutil.wait_procs(asyncio.run(scenario()), timeout=20)
    assert alive == []


@pytest.mark.full
def test_strings_of_all_lengths_from_many_clients_are_all_answered(bert_bundle: Path, tmp_path: Path) -> None:
    """Triton's Python backend has an open report of random hangs with string tensors, from about 100 kB per tensor.

    https://github.com/triton-inference-server/server/issues/6841. If it hangs, the watchdog restarts it.
    """
    settings = deployed_settings(bert_bundle, tmp_path)

    async def call(client: TritonClient, number: int) -> None:
        for count in range(40):
            texts = ["good " * (20_000 // (1 + (number + count + place) % 7) ** 3) for place in range(1 + count % 9)]
            answer = await client.classify([f"{text}{number}" for text in texts], 60)
            assert len(answer.labels) == len(texts)

    async def scenario() -> None:
        async with running(settings) as client:
            (before,) = tritons(settings)
            await asyncio.gather(*(call(client, number) for number in range(8)))
            assert tritons(settings) == [before]

    asyncio.run(scenario())
