"""Many calls are answered by one version, also where it changes meanwhile."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from serving.client.one_version import VersionChangesError, by_one_version


@dataclass(frozen=True)
class Answer:
    version: int


class Versions:
    """Answers each part by the next of some versions, and the parts after those by the last."""

    def __init__(self, *versions: int) -> None:
        self.versions = list(versions)
        self.calls: list[list[str]] = []

    async def call(self, parts: Sequence[str]) -> dict[str, Answer]:
        self.calls.append(list(parts))
        return {part: Answer(self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]) for part in parts}


def answered(versions: Versions, parts: str, pauses: int, **known: int) -> dict[str, int]:
    before = {part: Answer(version) for part, version in known.items()}
    answers = asyncio.run(by_one_version(list(parts), versions.call, [0.0] * pauses, before))
    return {part: answer.version for part, answer in answers.items()}


def test_only_what_another_version_answered_is_sent_again() -> None:
    versions = Versions(1, 1, 2)
    assert answered(versions, "abc", 1) == {"a": 2, "b": 2, "c": 2}
    assert versions.calls == [["a", "b", "c"], ["a", "b"]]


def test_what_is_known_of_another_version_is_sent_too() -> None:
    versions = Versions(2)
    assert answered(versions, "a", 1, x=1, y=2) == {"x": 2, "y": 2, "a": 2}
    assert versions.calls == [["a"], ["x"]]


def test_nothing_is_no_call() -> None:
    versions = Versions(1)
    assert answered(versions, "", 1) == {}
    assert versions.calls == []


def test_a_version_that_keeps_changing_is_given_up() -> None:
    versions = Versions(1, 2, 3, 4, 5)
    with pytest.raises(VersionChangesError):
        answered(versions, "ab", 2)
    assert versions.calls == [["a", "b"], ["a"], ["b"]]
