"""Finds the columns of texts and labels by their names or positions."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from common.wording import shortened

_SHOWN_CHARACTERS = 60
_SHOWN_COLUMNS = 30


@dataclass(frozen=True)
class ColumnChoice:
    """The columns to read. None: the column is found by its usual names."""

    text: str | None = None
    """A name, or a position counted from 1 for files without a header."""
    label: str | None = None
    """A name, or a position counted from 1 for files without a header."""


@dataclass(frozen=True)
class Usual:
    """The usual names of a column."""

    what: str
    """What the column holds; also its own name, which is preferred to all others."""
    tiers: tuple[re.Pattern[str], ...]
    """Usual names. Those of a tier are preferred to those of later ones."""

    def has(self, name: str) -> bool:
        """Return whether a name is one of the usual ones."""
        return any(_matches(name, tier) for tier in self.all_tiers)

    @property
    def all_tiers(self) -> tuple[re.Pattern[str], ...]:
        """The usual names, after the column's own name."""
        return (re.compile(self.what), *self.tiers)


TEXT = Usual(
    "text",
    (
        re.compile(
            "texts|reviews?(text|body|content)?|sentences?|tweets?(text)?|contents?|body|comments?(text)?|"
            "messages?(text)?|title|headline|phrase|document|utterance"
        ),
    ),
)
LABEL = Usual(
    "label",
    (
        re.compile("labels|sentiments?(label)?|polarity|target|class|category|emotion"),
        re.compile("(review|star)?ratings?|stars?|score|overall"),
    ),
)
"""Ratings come second: a file with ratings and sentiments is labelled with its sentiments."""


@dataclass(frozen=True)
class Wanted:
    """A column to find."""

    usual: Usual
    chosen: str | None
    """A name or a position; None for the usual names."""
    setting: str
    """The setting or option that chooses it."""

    @property
    def position(self) -> int | None:
        """The index that is chosen; None if a name or nothing is chosen."""
        chosen = (self.chosen or "").strip()
        return int(chosen) - 1 if chosen.isdecimal() and chosen.isascii() and int(chosen) > 0 else None


@dataclass(frozen=True)
class Found:
    """A column that was found."""

    index: int
    note: str
    """What was assumed; empty if nothing was."""


def find_column(names: Sequence[str], wanted: Wanted) -> Found | str:
    """Return the column, or the problem and how to solve it."""
    if wanted.position is not None:
        if wanted.position < len(names):
            return Found(wanted.position, "")
        return f"{wanted.setting}={wanted.chosen}, but there are only {len(names)} columns: {shown_names(names)}"
    if wanted.chosen:
        return _named(names, wanted, wanted.chosen)
    for tier in wanted.usual.all_tiers:
        found = [index for index, name in enumerate(names) if _matches(name, tier)]
        if len(found) > 1:
            several = shown_names([names[index] for index in found])
            return f"{several} could all be the {wanted.usual.what}. Set {wanted.setting} to one of them"
        if found:
            name = names[found[0]]
            note = "" if name == wanted.usual.what else f"column {shown_name(name)} is used as the {wanted.usual.what}"
            return Found(found[0], note)
    return f"no column has a usual name for the {wanted.usual.what}. Set {wanted.setting} to its name"


def has_header(first: Sequence[str], wanted: Sequence[Wanted]) -> bool:
    """Return whether the first row names the columns.

    It does not if all columns are chosen by position, unless it has a usual name at a chosen position or, for a column
    that is not chosen, anywhere.
    """
    if any(column.chosen and column.position is None for column in wanted):
        return True
    positions = [column for column in wanted if column.position is not None]
    if not positions:
        return True
    for column in wanted:
        cells = first
        if column.position is not None:
            cells = first[column.position : column.position + 1]
        if any(map(column.usual.has, cells)):
            return True
    return False


def shown_names(names: Sequence[str]) -> str:
    """Return the names for a message, at most 30 of them."""
    shown = ", ".join(map(shown_name, names[:_SHOWN_COLUMNS])) or "none"
    return f"{shown} and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else shown


def shown_name(name: str) -> str:
    """Return a name in quotes, shortened."""
    return repr(shortened(name, _SHOWN_CHARACTERS))


def _named(names: Sequence[str], wanted: Wanted, chosen: str) -> Found | str:
    exact = [index for index, name in enumerate(names) if name == chosen]
    found = exact or [index for index, name in enumerate(names) if _form(name) == _form(chosen)]
    if len(found) == 1:
        name = names[found[0]]
        note = "" if name == chosen else f"column {shown_name(name)} is used for {wanted.setting}={chosen}"
        return Found(found[0], note)
    if found:
        return f"{len(found)} columns have the name {shown_name(chosen)}. Keep one"
    forms = {_form(name): name for name in reversed(names)}
    near = difflib.get_close_matches(_form(chosen), forms, n=1)
    advice = f"; did you mean {shown_name(forms[near[0]])}?" if near else ""
    return f"has no column {shown_name(chosen)} ({wanted.setting}){advice}"


def _matches(name: str, usual: re.Pattern[str]) -> bool:
    return len(name) <= _SHOWN_CHARACTERS and usual.fullmatch(_form(name)) is not None


def _form(name: str) -> str:
    """Return the name without what does not matter: letter case, blanks, quotes, dashes, and a byte order mark."""
    return re.sub(r"[\s_\-\"'\ufeff\u200b]+", "", name).casefold()
