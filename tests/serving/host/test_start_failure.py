"""Triton that cannot start: the reason from its log is told, and it is given up, but not for a short outage."""

import asyncio
import errno
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.settings import Settings
from serving.client.triton_client import TritonClient
from serving.host import supervisor as supervisor_module
from serving.host import triton
from serving.host.log_file import last_lines, rotate
from serving.host.start_failure import why_not_started
from serving.host.supervisor import LEAST_FAILED_STARTS, TritonSupervisor
from serving.host.watchdog import CHILD_DIED
from serving.model_repo.protocol import MODEL_NAME
from tests.serving.host.test_supervisor import deployed_settings, shared_memory, tritons

STUB = Path("triton", "backends", "python", "triton_python_backend_stub")


def remove_stub(settings: Settings) -> None:
    (settings.state_dir / STUB).unlink()


def part_stub_from_its_libraries(settings: Settings) -> None:
    """It finds them beside itself, and ends at once where it does not; Triton waits for it all the same."""
    stub = settings.state_dir / STUB
    real = stub.resolve()
    stub.unlink()
    shutil.copy(real, stub)


def break_graph(settings: Settings) -> None:
    (settings.model_repository / "sentiment" / "1" / "model.onnx").write_bytes(b"no graph")


@pytest.mark.full
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_stub, "triton_python_backend_stub is not found"),
        (part_stub_from_its_libraries, "error while loading shared libraries: lib"),
        (break_graph, "Protobuf parsing failed"),
    ],
)
def test_the_reason_is_told_and_after_some_tries_what_to_do(
    damage: Callable[[Settings], None],
    reason: str,
    bert_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    settings = deployed_settings(bert_bundle, tmp_path)
    supervisor = TritonSupervisor(settings)
    damage(settings)
    with pytest.raises(PipelineError) as ended:
        asyncio.run(asyncio.wait_for(supervisor.run(), 200))
    message = str(ended.value)
    assert f"Triton failed to start {LEAST_FAILED_STARTS} times: " in message
    assert f"delete {triton.server_directory()} and" in message
    assert reason in message
    assert str(supervisor.log_file) in message
    pauses = re.findall(rf"before it responded: .*{re.escape(reason)}.* Starting it again in ([\d.]+) s", caplog.text)
    assert pauses == ["0.5", "1.0", "2.0", "4.0"]
    assert tritons(settings) == []
    assert shared_memory(settings) == []


@pytest.mark.full
def test_one_that_was_live_once_is_started_again_for_as_long_as_it_takes(
    bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor_module, "LEAST_FAILED_STARTS", 2)
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    settings = deployed_settings(bert_bundle, tmp_path)
    supervisor = TritonSupervisor(settings)

    async def scenario() -> None:
        supervising = asyncio.create_task(supervisor.run())

        async def until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert not supervising.done()
                await asyncio.sleep(0.05)

        await asyncio.wait_for(until(lambda: supervisor._has_lived), 90)
        stub = (settings.state_dir / STUB).resolve()
        remove_stub(settings)
        (process,) = tritons(settings)
        process.kill()
        await asyncio.wait_for(until(lambda: caplog.text.count("triton_python_backend_stub is not found") > 2), 90)
        (settings.state_dir / STUB).symlink_to(stub)
        await asyncio.wait_for(until(lambda: supervisor._has_lived), 90)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(scenario())


class Starts:
    """A program in the place of Triton, and how often it failed to start."""

    def __init__(self, script: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(supervisor_module, "LONGEST_PAUSE_S", 0.01)
        program = directory / "files" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o700)
        monkeypatch.setattr(triton, "command", lambda _: [str(program)])
        self.repository = directory / "repository"
        self.supervisor = TritonSupervisor(
            Settings(state_dir=directory, model_repository=self.repository), self.note_failure
        )
        self.failed = 0
        self.name_version(1)

    def name_version(self, version: int) -> None:
        config = self.repository / MODEL_NAME / "config.pbtxt"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f"version_policy: {{ specific: {{ versions: [ {version} ] }} }}", encoding="utf-8")

    def note_failure(self) -> None:
        self.failed += 1

    def error(self) -> str:
        """The error with which it is given up."""
        with pytest.raises(PipelineError) as ended:
            asyncio.run(asyncio.wait_for(self.supervisor.run(), 90))
        return str(ended.value)

    async def run_until(self, condition: Callable[[], bool]) -> None:
        """Run until `condition` is true; fail if it is given up before."""
        supervising = asyncio.create_task(self.supervisor.run())
        deadline = time.monotonic() + 90
        while not condition():
            assert not supervising.done()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


@pytest.mark.parametrize("ending", ["exit 1", "kill -ILL $$"], ids=["error", "crash"])
def test_it_is_given_up_only_after_some_time(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(f"echo error: no space left; {ending}", tmp_path, monkeypatch)
    asyncio.run(starts.run_until(lambda: starts.failed > LEAST_FAILED_STARTS + 1))
    starts.failed = 0
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    message = starts.error()
    assert f"Triton failed to start {LEAST_FAILED_STARTS} times: error: no space left. All" in message
    assert f"delete {tmp_path / 'files'} and" in message
    assert starts.failed == LEAST_FAILED_STARTS - 1


def test_one_that_a_signal_ended_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel does it when memory is short."""
    starts = Starts("kill -9 $$", tmp_path, monkeypatch)
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    asyncio.run(starts.run_until(lambda: caplog.text.count("killed by SIGKILL") > LEAST_FAILED_STARTS))
    assert starts.failed == 0


def test_one_whose_python_process_died_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def until_broken(*_: object) -> str:
        return CHILD_DIED

    starts = Starts("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(supervisor_module, "until_broken", until_broken)
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    assert f"failed to start {LEAST_FAILED_STARTS} times" in starts.error()
    assert starts.failed == LEAST_FAILED_STARTS - 1


def test_the_starts_of_another_version_are_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts("exit 1", tmp_path, monkeypatch)
    monkeypatch.setattr(supervisor_module, "LEAST_FAILING_S", 0.0)
    note = starts.note_failure

    def repair() -> None:
        note()
        if starts.failed == 2:
            starts.name_version(2)

    starts.supervisor._on_failed_start = repair
    assert f"failed to start {LEAST_FAILED_STARTS} times" in starts.error()
    assert starts.failed == 2 + LEAST_FAILED_STARTS - 1


@pytest.mark.parametrize("was_live", [False, True])
def test_a_log_that_was_deleted_ends_nothing(
    was_live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def until_broken(_client: TritonClient, _process_id: int, on_life: Callable[[], None]) -> str:
        starts.supervisor.log_file.unlink()
        if was_live:
            on_life()
        return "as the test says"

    starts = Starts("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(supervisor_module, "until_broken", until_broken)
    asyncio.run(starts.run_until(lambda: caplog.text.count("Starting it again" if not was_live else "The end of") > 1))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ('I1130 18:52:25.9 1 server.cc:604] "loading: sentiment:1"\n+---+\n| a |\n\n', ""),
        (
            "E1130 18:53:43.7 1 model.cc:642] \"failed to load 'sentiment' version 1: Internal: KeyError: 'a'"
            '\\n\\nAt:\\n  /model.py(43): initialize\\n"\nerror: creating server\nAt:\n  model.py(43)\n',
            "Internal: KeyError: 'a'",
        ),
        (
            "E1130 18:53:48.6 1 repository.cc:1460] \"Poll failed for model directory 'sentiment': "
            'failed to read text proto from /a/config.pbtxt"\nerror: creating server: failed to load all models\n',
            "failed to read text proto from /a/config.pbtxt",
        ),
        ("I1130 18:52:25.9 1 a.cc:1] loading\nsh: 1: /a: not found\n", "sh: 1: /a: not found"),
        ("/a/server cannot be run: Permission denied\n", "/a/server cannot be run: Permission denied"),
        ("x" * 10_000, "x" * 500),
    ],
    ids=["empty", "nothing said", "backend", "repository", "stub", "server", "long"],
)
def test_reason_is_found_in_the_log_of_the_last_start(log: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "triton.log"
    before = "error: of an earlier start\n"
    file.write_text(before + log, encoding="utf-8")
    assert why_not_started(file, len(before)) == reason


def test_of_a_log_only_the_end_is_read(tmp_path: Path) -> None:
    log_file = tmp_path / "triton.log"
    lines = [f"line {number:06d}" for number in range(50_000)]
    log_file.write_text("\n".join(lines))
    read = last_lines(log_file)
    assert read[-1] == lines[-1]
    assert len(read) < len(lines)
    assert last_lines(log_file, start=10**9) == []
    assert last_lines(tmp_path / "none.log") == []


def test_a_log_that_grows_is_rotated_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.host.log_file.MOST_BYTES", 100)
    log_file = tmp_path / "triton.log"
    assert not rotate(log_file)
    with log_file.open("ab", buffering=0) as output:
        output.write(b"old\n" * 10)
        assert not rotate(log_file)
        output.write(b"old\n" * 20)
        assert rotate(log_file)
        output.write(b"new\n")
    assert log_file.read_text() == "new\n"
    older = tmp_path / "triton.log.1"
    assert older.read_text() == "old\n" * 30

    def full(*_: object) -> None:
        older.write_text("a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serving.host.log_file.shutil.copyfile", full)
    log_file.write_text("old\n" * 30)
    assert rotate(log_file)
    assert log_file.read_text() == ""
    assert not older.exists()
