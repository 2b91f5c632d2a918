"""The format of `SENTIMENT_LABEL_NAMES`, which gives names to the labels in data files: `0=Negative,4=Positive`."""


def parse_label_names(names: str) -> dict[str, str]:
    """Return the name of each label in the files; several labels may have one name.

    Raises:
        ValueError: `names` has another format, or names a label twice.
    """
    parsed: dict[str, str] = {}
    for pair in filter(str.strip, names.split(",")):
        label, _, name = (part.strip() for part in pair.partition("="))
        if not label or not name:
            raise ValueError("use pairs of a label and its name, such as 0=Negative,4=Positive")
        if label in parsed:
            raise ValueError(f"{label} has two names")
        parsed[label] = name
    return parsed
