"""Numbers with their nouns, and long texts cut short, for messages and lists."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun in the singular or plural, such as `1,200 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def shortened(text: str, characters: int) -> str:
    """Return a text as it is, or its first `characters` and an ellipsis if it is longer."""
    return text if len(text) <= characters else f"{text[:characters]}…"
