"""Rules for valid texts, shared by the gateway, the client and bulk scoring."""

import re
from typing import NamedTuple

MAX_CHARACTERS = 100_000
"""Maximum characters of a text: a novella's chapter, far more than any model reads, and still fast to tokenize."""

CHARACTERS_PER_TOKEN = 10
"""Characters that are tokenized per token that the model reads; languages have 3 to 5 characters per token. Tokenizing
all of a text of 100,000 characters took 100 to 650 ms, more than the model takes for the part that it reads."""
LONGEST_BLANKS = 2
"""Length to which runs of blanks are shortened in a long text. With longer ones, a table of thirty words could have no
room left for its last words, although a model reads them: blanks are few tokens or none."""
_LONG_BLANKS = re.compile(rf"\s{{{LONGEST_BLANKS + 1},}}")

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters with which a formula can begin in a spreadsheet; the last four are the full-width forms of the first."""
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u2800"
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Any character except blanks, control characters, the empty Braille cell, and Unicode's default-ignorable characters:
zero-width characters, fillers and selectors, which are invisible by themselves."""


def text_fault(text: str) -> str | None:
    """Return the fault of `text` and how to fix it; None if the text can be classified."""
    if len(text) > MAX_CHARACTERS:
        return f"is {len(text):,} characters long; at most {MAX_CHARACTERS:,} are allowed"
    # Most blank texts contain only plain blanks, and `isspace` finds them ten times faster.
    if text.isspace() or not _VISIBLE.search(text):
        return "is empty or only blanks; a text with a visible character is needed"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return f"has half of a surrogate pair, {code}, at position {error.start}; whole characters are needed"
    return None


class Readable(NamedTuple):
    """The part of a text that is tokenized."""

    text: str
    is_cut: bool
    """True if the part lacks visible characters from the end of the text."""


def readable(text: str, max_tokens: int) -> Readable:
    """Return the part of `text` to tokenize for a model that reads `max_tokens` tokens.

    All code that tokenizes texts calls this first, so that a text gets the same prediction everywhere. A text of up to
    `CHARACTERS_PER_TOKEN` characters per token is returned unchanged. In a longer text, each run of blanks is shortened
    to `LONGEST_BLANKS`, and the result is cut to that number of characters.
    """
    room = CHARACTERS_PER_TOKEN * max_tokens
    if len(text) <= room:
        return Readable(text, is_cut=False)
    parts = []
    start = 0
    while room > 0 and start < len(text):
        blanks = _LONG_BLANKS.search(text, start, start + room)
        end = blanks.start() + LONGEST_BLANKS if blanks else min(start + room, len(text))
        parts.append(text[start:end])
        room -= end - start
        # The search stopped at the end of the room, but the run of blanks may continue.
        whole = _LONG_BLANKS.match(text, blanks.start()) if blanks else None
        start = whole.end() if whole else end
    return Readable("".join(parts), is_cut=not (start == len(text) or text[start:].isspace()))
