"""Renders templates. Jinja escapes all values; no code here marks text as safe."""

from datetime import datetime
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.wording import counted
from gateway.console.assets import assets

_TEMPLATES = Path(__file__).resolve().parent / "templates"
NOTHING = "–"
"""Placeholder for a missing value."""


def render(template: str, context: dict[str, object]) -> str:
    """Render a template."""
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "percent": percent,
        "figure": figure,
        "signed": signed,
        "milliseconds": milliseconds,
        "utc": utc,
        "iso": iso,
        "counted": counted,
        "rate": rate,
        "plain": plain,
    }
    environment.globals["asset"] = lambda name: assets()[name].path
    return environment


def percent(share: float | None, decimals: int = 1) -> str:
    """Format a share from 0 to 1 in percent."""
    return NOTHING if share is None else f"{100 * share:.{decimals}f} %"


def figure(value: float | None, decimals: int = 1) -> str:
    """Format a number with thousands separators."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def rate(value: float | None) -> str:
    """Format a rate per second; a few requests are not shown as 0.0."""
    return figure(value, 1 if not value or value >= 1 else 2)


def signed(value: float, decimals: int = 4) -> str:
    """Format a difference with its sign; one that rounds to zero has none."""
    rounded = round(value, decimals)
    return f"{rounded:+,.{decimals}f}".replace("-", "−") if rounded else f"{0:.{decimals}f}"


def milliseconds(value: float | None) -> str:
    """Format a duration in milliseconds, or in seconds from one on, with about three significant digits."""
    if value is None:
        return NOTHING
    if value >= 999.5:
        return f"{value / 1_000:,.{0 if value >= 99_950 else 1 if value >= 9_995 else 2}f} s"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} ms"


def utc(time: datetime | None) -> str:
    """Format a time for people."""
    return NOTHING if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def plain(value: object) -> str:
    """Format any value of an event's figures: numbers with thousands separators, lists with commas."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if value is None or isinstance(value, bool):
        return {None: NOTHING, True: "yes", False: "no"}[value]
    if isinstance(value, float) and not (value > 1 and value.is_integer()):  # a count may be a float
        return figure(value, 4)
    return figure(value, 0) if isinstance(value, int | float) else str(value)


def iso(time: datetime | None) -> str:
    """Format a time for programs (ISO 8601)."""
    return "" if time is None else time.isoformat(timespec="seconds")
