"""Which texts can be classified, for all who take texts: the gateway, the client, bulk scoring."""

import re

MAX_CHARACTERS = 100_000
"""Characters in a text: a novella's chapter, far over what any model reads, and still quick to tokenize."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes what begins so for a formula."""
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u2800"
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Anything but blanks, control characters, the empty Braille cell, and what Unicode calls default-ignorable: the
zero-width characters, fillers and selectors that show nothing by themselves."""


def text_fault(text: str) -> str | None:
    """Say what is wrong with `text`, and what would be right; none where it can be classified."""
    if len(text) > MAX_CHARACTERS:
        return f"is {len(text):,} characters long; at most {MAX_CHARACTERS:,} are allowed"
    # Most blank texts are of plain blanks, and those are told from others ten times as fast.
    if text.isspace() or not _VISIBLE.search(text):
        return "is empty or only blanks; a text with a visible character is needed"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return f"has half of a surrogate pair, {code}, at position {error.start}; whole characters are needed"
    return None
