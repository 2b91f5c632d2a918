"""One fault: caused under load, watched until everything is right again, and put into a row of the table."""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from tests.e2e.chaos.load import FEEDBACK, Asked
from tests.e2e.chaos.target import Target, count_kept, opened

BEFORE_S = 0.5
"""Of load, before the fault."""
CALM_S = 2.0
"""For so long everything has to be right."""
LONGEST_RECOVERY_S = 90.0


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    name: str
    does: str
    """For the table: what goes wrong."""
    cause: Callable[[Target], None]
    """Causes it, mends what only an operator or another system can, and looks at what only this fault shows."""
    told: str
    """A regular expression for the line of the log that tells the operator."""
    cuts_connections: bool = False
    """Whether the gateway itself is gone for a time, so that no answer comes."""


@dataclass
class Result:
    """What came of a fault."""

    fault: str
    does: str
    requests: int
    outcomes: dict[str, int]
    """How many requests were answered how."""
    slowest_s: float
    slowest: str
    """The kind of the slowest request."""
    recovery_s: float | None
    """From the end of the cause until all was right again; none where that took too long."""
    accepted: int
    """Rows of feedback."""
    lost: int
    doubled: int
    wrong: int
    told: str
    """The operator's line."""
    lines: int
    """Warnings and errors in the log."""
    problems: list[str] = field(default_factory=list)
    """What must not be."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def observe(fault: Fault, target: Target) -> Result:
    """Cause the fault and see what comes of it."""
    problems: list[str] = []
    target.began, target.over, target.well = time.monotonic(), 0.0, 0.0
    target.log_from = len(target.served.log)
    time.sleep(BEFORE_S)
    try:
        fault.cause(target)
    except Exception as error:  # the other faults are still to be caused
        reason = str(error).strip().partition("\n")[0]
        problems.append(f"{type(error).__name__}: {reason}")
    over = target.over or time.monotonic()
    recovery = _wait_until_calm(target, over)
    if recovery is None:
        problems.append(f"not right again within {LONGEST_RECOVERY_S:.0f} s")
    asked = target.load.since(target.began)
    _wait_for_answers(asked)
    return _judge(fault, target, asked, recovery, problems)


def _wait_until_calm(target: Target, over: float) -> float | None:
    """Seconds after `over` at which the last request was sent that failed, or what else the fault shows was right."""
    deadline = time.monotonic() + LONGEST_RECOVERY_S + CALM_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = time.monotonic()
        since = max(over, now - CALM_S - 0.5)
        recent = [item for item in target.load.since(since) if item.sent <= now - 0.5]
        kinds = {item.kind for item in recent}
        if now - since > CALM_S and len(kinds) == 3 and all(item.succeeded for item in recent):
            failed = [item.sent for item in target.load.since(over) if item.ended and not item.succeeded]
            if any(sent > over + LONGEST_RECOVERY_S for sent in failed):
                return None
            return max([0.0, target.well - over, *(sent - over for sent in failed)])
    return None


def _wait_for_answers(asked: list[Asked]) -> None:
    deadline = time.monotonic() + 45
    while any(not item.ended for item in asked) and time.monotonic() < deadline:
        time.sleep(0.1)


def _judge(
    fault: Fault,
    target: Target,
    asked: list[Asked],
    recovery: float | None,
    problems: list[str],
) -> Result:
    outcomes = Counter(_outcome(item) for item in asked)
    wrong = target.references.wrong([item for item in asked if item.status == 200])
    accepted = [item.texts[0] for item in target.load.asked if item.kind == FEEDBACK and item.status == 201]
    with opened(target.served) as database:
        lost, doubled = count_kept(database, accepted)
    unclear = Counter(
        item.failure or "never answered"
        for item in asked
        if (item.failure or not item.ended) and not (fault.cuts_connections and item.failure == "no connection")
    )
    problems += [f"{count} × {what}" for what, count in unclear.items()]
    if wrong:
        problems.append(f"{len(wrong)} wrong answers, such as {wrong[0]}")
    if lost or doubled:
        problems.append(f"{lost} accepted rows lost, {doubled} kept twice")
    log = target.log()
    told = re.search(rf"^.*(?:{fault.told}).*$", log, re.MULTILINE)
    if not told:
        problems.append(f"the log has no line like {fault.told!r}")
    lines = sum(bool(re.match(r"\d\d:\d\d:\d\d (WARNING|ERROR|CRITICAL)", line)) for line in log.splitlines())
    slowest = max((item for item in asked if item.ended), key=lambda item: item.ended - item.sent)
    return Result(
        fault=fault.name,
        does=fault.does,
        requests=len(asked),
        outcomes=dict(outcomes.most_common()),
        slowest_s=slowest.ended - slowest.sent,
        slowest=slowest.kind,
        recovery_s=recovery,
        accepted=sum(item.kind == FEEDBACK and item.status == 201 for item in asked),
        lost=lost,
        doubled=doubled,
        wrong=len(wrong),
        told=told[0] if told else "",
        lines=lines,
        problems=problems,
    )


def _outcome(item: Asked) -> str:
    if item.succeeded:
        return "right"
    if item.failure:
        return item.failure
    return f"{item.status} {item.problem}" if item.status else "never answered"
