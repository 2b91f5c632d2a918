"""Turns templates into pages. Jinja escapes whatever is put into them; nothing here marks text as safe."""

from datetime import datetime
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gateway.console.assets import assets

_TEMPLATES = Path(__file__).resolve().parent / "templates"
NOTHING = "–"
"""Stands where there is no figure."""


def render(template: str, context: dict[str, object]) -> str:
    """Fill in a template."""
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
        "milliseconds": milliseconds,
        "utc": utc,
        "iso": iso,
        "counted": counted,
    }
    environment.globals["asset"] = lambda name: assets()[name].path
    return environment


def percent(share: float | None, decimals: int = 1) -> str:
    """A share, 0 to 1, in percent."""
    return NOTHING if share is None else f"{100 * share:.{decimals}f} %"


def figure(value: float | None, decimals: int = 1) -> str:
    """A number with thousands set apart."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def milliseconds(value: float | None) -> str:
    """A duration, with as many decimals as say something."""
    if value is None:
        return NOTHING
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} ms"


def utc(time: datetime | None) -> str:
    """A point in time for people."""
    return NOTHING if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def iso(time: datetime | None) -> str:
    """A point in time for programs."""
    return "" if time is None else time.isoformat(timespec="seconds")


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
