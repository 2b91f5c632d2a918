"""Open connections: as many as the process's file descriptors allow, and then waiting and idle ones end."""

import resource

import pytest

from gateway.http.connections import StrangersConnections, raise_descriptor_limit

Limits = tuple[int, int]


class Connection:
    group = "this machine"

    def __init__(self) -> None:
        self.is_open = True

    def give_way(self) -> None:
        self.is_open = False


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> StrangersConnections:
    """Of a process with 80 file descriptors, so that 50 connections may be open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (80, 80))
    return StrangersConnections(keys_are_needed=True)


def test_without_descriptors_those_without_a_key_end_first_and_then_idle_ones(strangers: StrangersConnections) -> None:
    with_key = [Connection() for _ in range(25)]
    without_key = [Connection() for _ in range(25)]
    assert all(strangers.open() for _ in (*with_key, *without_key))
    for connection in with_key:
        strangers.add_idle(connection)
    for connection in without_key:
        strangers.add(connection)
    assert all(connection.is_open for connection in (*with_key, *without_key))
    for _ in range(15):
        assert strangers.open()
    assert [connection.is_open for connection in without_key] == [False] * 15 + [True] * 10
    assert all(connection.is_open for connection in with_key)
    strangers.discard(with_key[1])  # it has a request now
    assert strangers.open()  # so few wait that they may be new ones, whose first request is on its way
    assert [connection.is_open for connection in with_key] == [False, *[True] * 24]
    for _ in range(23 + 10):
        assert strangers.open()
    assert with_key[1].is_open
    assert not any(connection.is_open for connection in (*with_key[2:], *without_key))
    assert not strangers.open()  # all others have requests


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1_024, 4_096), (4_096, 4_096)),
        ((1_024, 1_048_576), (65_536, 1_048_576)),
        ((1_024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((1_024, 1_024), None),
        ((100_000, 1_048_576), None),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_allows(
    limits: Limits, raised: Limits | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Limits] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: made.append(given))
    raise_descriptor_limit()
    assert made == ([raised] if raised else [])
