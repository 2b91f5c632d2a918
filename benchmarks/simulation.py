"""What the simulations from rated texts share: the texts with clear labels, and where results go."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from storage.feedback import text_hash
from trainer.sample_data import CLEAR_RATING, Domain, read_ratings

LABELS = ("Negative", "Positive")

Row = tuple[str, str]
"""Text and label."""


def rated_texts(domains: Sequence[Domain], known: Collection[str]) -> dict[str, Row]:
    """Texts with clear ratings by their hash, each once, but for those whose hash is `known`.

    Raises:
        PipelineError: the ratings cannot be fetched.
    """
    rows: dict[str, Row] = {}
    for domain in domains:
        for text, rating in read_ratings(domain):
            hash_ = text_hash(text)
            if abs(rating) >= CLEAR_RATING and hash_ not in known:
                rows.setdefault(hash_, (text, LABELS[rating > 0]))
    return rows


def keep(directory: Path, name: str, results: dict[str, Any], table: str) -> None:
    """Write the results as JSON and their table as Markdown, and print the table."""
    (directory / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / f"{name}.md").write_text(table)
    print(table)
