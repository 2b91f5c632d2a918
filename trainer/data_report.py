"""The report on the data: an object for programs, and a table for people."""

import shutil
import textwrap
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

from trainer.base_tokenizer import BaseTokenizer
from trainer.dataset import DataCheck, FileFacts
from trainer.suspects import SuspectList
from trainer.token_figures import MOST_TEXTS, TokenFigures, scripts, token_figures

_RARE_SCRIPT = 0.005
"""Share of letters below which a script is not shown."""
_LABELS_SHOWN = 20
_LONGEST_NAME = 40
_NO_SHARE = " " * 9
"""As wide as two blanks and a share."""
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


@dataclass(frozen=True)
class DataReport:
    """What is known about the data."""

    check: DataCheck
    tokens: TokenFigures | None
    """None if the encoder's tokenizer is not on this machine."""
    scripts: dict[str, float]
    suspects: SuspectList | None = None
    """The list of labels that are probably wrong; None before the first training."""

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        labels: dict[str, int] = {}
        for file in (self.check.train, self.check.val):
            for label, texts in file.labels.items():
                labels[label] = labels.get(label, 0) + texts
        return {
            "train": self._file(self.check.train),
            "val": {**self._file(self.check.val), "held_out": self.check.is_held_out},
            "labels": dict(sorted(labels.items())),
            "overlap": self.check.overlap,
            "unknown_tokens": self.tokens and round(self.tokens.unknown, 4),
            "truncated": self.tokens and round(self.tokens.truncated, 4),
            "tokens": self.tokens and asdict(self.tokens),
            "scripts": {script: round(share, 4) for script, share in self.scripts.items() if share >= _RARE_SCRIPT},
            "suspicious_labels": self.suspects and {"list": str(self.suspects.path), "rows": self.suspects.rows},
            "notes": self.check.notes,
            "warnings": self.warnings,
            "problems": self.check.problems,
        }

    @property
    def warnings(self) -> list[str]:
        """What will probably make a poor model, in words."""
        return self.tokens.warnings() if self.tokens else []

    def _file(self, file: FileFacts) -> dict[str, Any]:
        return {
            "file": str(file.path),
            **asdict(file.counts),
            "rejected_list": str(self.check.rejected_list),
            "encoding": file.encoding,
            "delimiter": file.delimiter,
        }

    def as_text(self) -> str:
        """Return the report as tables for people."""
        parts = [_table(self._rows()), _table(self._labels()), "\n".join(self._texts())]
        parts.append("\n".join(_wrapped(f"! {warning}.") for warning in self.warnings))
        parts.append("\n".join(_wrapped(f"- {note}.") for note in self.check.notes))
        return "\n\n".join(part for part in parts if part)

    def _rows(self) -> list[list[str]]:
        files = [self.check.train] if self.check.is_held_out else [self.check.train, self.check.val]
        files = [file for file in files if file.counts.rows]  # the problems say why another has none
        if not files:
            return []
        rows = [["file", *(_printable(_end(str(file.path))) for file in files)]]
        rows.append(["format", *map(_format, files)])
        rows.append(["rows", *(f"{file.counts.rows:,}" for file in files)])
        rows.append(["  kept", *(_of(file.counts.kept, file.counts.rows) for file in files)])
        rows.append(["  repeated", *(_of(file.counts.repetitions, file.counts.rows) for file in files)])
        rows.append(["  rejected", *(_of(sum(file.counts.rejected.values()), file.counts.rows) for file in files)])
        for reason in dict.fromkeys(reason for file in files for reason in file.counts.rejected):
            rows.append(
                [f"    {reason}", *(_of(file.counts.rejected.get(reason, 0), file.counts.rows) for file in files)]
            )
        if self.check.overlap:
            rows.append(["  kept, but also in validation", f"{self.check.overlap:,}", ""])
        return rows

    def _labels(self) -> list[list[str]]:
        train, val = self.check.train.labels, self.check.val.labels
        names = sorted({*train, *val}, key=lambda name: (-train.get(name, 0), name))
        if not names:
            return []
        shown, rest = names[:_LABELS_SHOWN], names[_LABELS_SHOWN:]
        rows = [["label", "training", "held out" if self.check.is_held_out else "validation"]]
        for name in shown:
            rows.append([_printable(name), *(_of(part.get(name, 0), sum(part.values())) for part in (train, val))])
        if rest:
            sums = (_of(sum(part.get(name, 0) for name in rest), sum(part.values())) for part in (train, val))
            rows.append([f"{len(rest):,} others", *sums])
        rows.append(["all", *(f"{sum(part.values()):,}{_NO_SHARE}" for part in (train, val))])
        return rows

    def _texts(self) -> list[str]:
        lines = []
        if self.tokens:
            tokens = self.tokens
            sample = f", measured on {tokens.texts:,} texts at random" if tokens.texts == MOST_TEXTS else ""
            encoder = tokens.encoder
            if tokens.stands_in_for:
                encoder = f"{tokens.stands_in_for} is not on this machine yet; measured with the tokenizer of {encoder}"
            lines += [
                f"encoder           {encoder}{sample}",
                f"length in tokens  median {tokens.median}, 95 % up to {tokens.nearly_longest}, longest "
                f"{tokens.longest:,}; {_percent(tokens.truncated)} of the texts are cut at {tokens.max_length}",
                f"unknown tokens    {_percent(tokens.unknown)}",
            ]
        elif self.scripts:
            lines.append(
                "length in tokens  not known: the encoder is not on this machine yet; the training downloads it, and "
                "logs this report with the lengths"
            )
        if self.scripts:
            shares = [f"{script} {_percent(share)}" for script, share in self.scripts.items() if share >= _RARE_SCRIPT]
            lines.append(f"scripts           {', '.join(shares)}")
        if self.suspects:
            rows = f"the {self.suspects.rows} most suspicious" if self.suspects.is_full else self.suspects.rows
            lines.append(f"suspicious labels {rows}, listed in {self.suspects.path} by the last training")
        return lines


def data_report(check: DataCheck, base: BaseTokenizer | None, suspects: SuspectList | None = None) -> DataReport:
    """Make the report. `base` is the encoder's tokenizer, or None if it is not on this machine.

    `suspects` is the list that the last training has written, or None if there was none.
    """
    texts = [*check.dataset.train.texts, *check.dataset.val.texts] if check.dataset else []
    return DataReport(check, token_figures(texts, base) if base else None, scripts(texts), suspects)


def _format(file: FileFacts) -> str:
    delimiter = _DELIMITERS.get(file.delimiter, repr(file.delimiter) if file.delimiter else "")
    return ", ".join(filter(None, (file.encoding, delimiter)))


def _of(number: int, total: int) -> str:
    """Return a number and its share, both aligned with those above and below."""
    return f"{number:,}  {_percent(number / total):>7}" if number else f"0{_NO_SHARE}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _printable(name: str) -> str:
    """Return a name without characters that a terminal would obey, and cut if it is long."""
    name = "".join(character if character.isprintable() else "·" for character in name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _end(path: str) -> str:
    return path if len(path) <= _LONGEST_NAME else f"…{path[1 - _LONGEST_NAME :]}"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, shutil.get_terminal_size((120, 40)).columns, subsequent_indent="  ")


def _table(rows: list[list[str]]) -> str:
    """Align the first column to the left and the others to the right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = [first + " " * (widths[0] - _width(first))]
        padded += [" " * (width - _width(cell)) + cell for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("   ".join(padded).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal; Chinese, Japanese and Korean characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
