"""A backend that waits for its turn, with the files as they lie in the repository."""

import os
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import PipelineError
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.switch import Switch, wait_for_turn


@pytest.fixture
def repository(tmp_path: Path, bert_bundle: Path) -> ModelRepository:
    repository = ModelRepository(tmp_path / "triton_repo")
    for version in (1, 2):
        staging = repository.staging_directory(version)
        for file in bert_bundle.iterdir():
            shutil.copy(file, staging)
        replace(Bundle.load(staging), version=version).save(staging)
        repository.publish(staging, version)
    repository.deploy(1)
    return repository


@pytest.fixture
def wait(repository: ModelRepository) -> Iterator[Callable[[str], "Future[None]"]]:
    """Have a backend that has loaded version 2 wait."""
    with ThreadPoolExecutor() as pool:
        yield lambda ticket: pool.submit(wait_for_turn, repository, 2, ticket)
        Switch(repository).end()


def ready(switch: Switch, tickets: list[str]) -> None:
    deadline = time.monotonic() + 10
    while not all(map(switch.is_ready, tickets)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_turn_when_the_version_is_deployed_and_none_before(
    repository: ModelRepository, wait: Callable[[str], "Future[None]"]
) -> None:
    switch = Switch(repository)
    switch.begin()
    tickets = [switch.lay_ticket() for _ in range(3)]
    assert not any(map(switch.is_ready, tickets))
    waiting = [wait(ticket) for ticket in tickets]
    ready(switch, tickets)
    time.sleep(0.1)
    assert not any(future.done() for future in waiting)
    repository.deploy(2)
    for future in waiting:
        future.result(timeout=10)


def test_all_give_up_when_the_deployment_is_called_off(
    repository: ModelRepository, wait: Callable[[str], "Future[None]"]
) -> None:
    switch = Switch(repository)
    switch.begin()
    tickets = [switch.lay_ticket() for _ in range(2)]
    waiting = [wait(ticket) for ticket in tickets]
    ready(switch, tickets)
    Switch(repository).end()
    for future in waiting:
        with pytest.raises(PipelineError, match="the deployment of version 2 was called off"):
            future.result(timeout=10)
    with pytest.raises(PipelineError, match="another process called the deployment off"):
        switch.is_ready(tickets[0])
    assert repository.deployed() == 1


def test_a_ticket_that_cannot_be_written_says_what_is_needed(repository: ModelRepository) -> None:
    Switch(repository).begin()
    with pytest.raises(PipelineError, match="Triton must be able to write to the model repository"):
        wait_for_turn(repository, 2, "another")


def test_who_gives_no_sign_of_life_is_waited_for_no_longer_and_can_tell(
    repository: ModelRepository, wait: Callable[[str], "Future[None]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model_repo.switch.PATIENCE_S", 2.0)
    switch = Switch(repository)
    switch.begin()
    ticket = switch.lay_ticket()
    waiting = wait(ticket)
    ready(switch, [ticket])
    for _ in range(30):
        time.sleep(0.1)
        switch.beat()
    assert not waiting.done()
    with pytest.raises(PipelineError, match="no sign of life for 2 s"):
        waiting.result(timeout=30)
    assert not switch.is_ready(ticket)


def test_a_load_without_a_ticket_is_of_what_is_deployed(repository: ModelRepository) -> None:
    wait_for_turn(repository, 1, None)
    with pytest.raises(PipelineError, match="version 1 was deployed while version 2 was loading"):
        wait_for_turn(repository, 2, None)


def make_huge(ticket: Path) -> None:
    os.truncate(ticket, 6 * 2**30)


def make_link(ticket: Path) -> None:
    ticket.unlink()
    ticket.symlink_to("/dev/zero")


def make_pipe(ticket: Path) -> None:
    ticket.unlink()
    os.mkfifo(ticket)


@pytest.mark.parametrize("spoil", [make_huge, make_link, make_pipe])
def test_a_ticket_that_is_none_is_an_error_at_once_and_costs_no_memory(
    repository: ModelRepository, spoil: Callable[[Path], None]
) -> None:
    switch = Switch(repository)
    switch.begin()
    name = switch.lay_ticket()
    ticket = repository.model / ".switch" / name
    assert stat.S_IMODE(ticket.stat().st_mode) == 0o600
    spoil(ticket)
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PipelineError, match=f"{name} is no .*file of a deployment.* Remove it"):
        switch.is_ready(name)
    if spoil is not make_huge:  # which is emptied, and then one like any other
        with pytest.raises(PipelineError, match=f"{name} is no regular file"):
            wait_for_turn(repository, 2, name)
    assert time.monotonic() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_signs_of_life_that_are_none_end_the_wait(
    repository: ModelRepository, wait: Callable[[str], "Future[None]"]
) -> None:
    switch = Switch(repository)
    switch.begin()
    waiting = wait(switch.lay_ticket())
    (repository.model / ".switch" / "beat").write_bytes(bytes(2**20))
    with pytest.raises(PipelineError, match="beat is no file of a deployment"):
        waiting.result(timeout=10)
