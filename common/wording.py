"""Words that depend on a number."""


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun in the singular or plural, such as `1,200 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
