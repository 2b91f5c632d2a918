"""What came of the faults, as a line each and as a table."""

from collections.abc import Sequence

from tests.e2e.chaos.fault import Result

_LONGEST_LINE = 160


def outcome_of(result: Result) -> str:
    """A line for the terminal."""
    recovery = "not right again" if result.recovery_s is None else f"right again after {result.recovery_s:.1f} s"
    line = f"{'FAILED' if result.problems else 'ok    '} {result.fault:24}{recovery}; {_seen(result)}"
    return "\n".join([line, *(f"{'':17}{problem}" for problem in result.problems)])


def markdown(results: Sequence[Result]) -> str:
    """The table; recovery in seconds after the cause was gone."""
    rows = [
        [
            f"`{result.fault}`: {result.does}",
            _seen(result),
            "never" if result.recovery_s is None else f"{result.recovery_s:.1f} s",
            f"{result.lost} of {result.accepted}",
            f"`{_operator(result)}`",
        ]
        for result in results
    ]
    columns = ["fault", "what clients saw", "recovery", "accepted feedback lost", "what the log told"]
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    asked, wrong = sum(result.requests for result in results), sum(result.wrong for result in results)
    failed = [f"- `{result.fault}`: {problem}" for result in results for problem in result.problems]
    summary = (
        f"{len(results)} faults, {asked:,} requests, {wrong} wrong answers, "
        f"{sum(result.lost for result in results)} accepted rows of feedback lost."
    )
    return "\n".join([table, "", summary, *(["", "What must not be:", "", *failed] if failed else [])]) + "\n"


def _seen(result: Result) -> str:
    told = [f"{count} {outcome}" for outcome, count in result.outcomes.items()]
    return f"{', '.join(told)}; slowest {result.slowest_s:.1f} s ({result.slowest})"


def _operator(result: Result) -> str:
    line = result.told.partition(" ")[2].strip().replace("|", "/").replace("`", "'")
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
