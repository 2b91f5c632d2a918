"""The labels of the data files: spellings of one label, names for codes, and codes of known schemes."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from common.wording import counted, shortened

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")
_SCHEMES = (
    "0=Negative,1=Positive",
    "0=Negative,4=Positive",
    "1=Negative,2=Positive",
    "-1=Negative,1=Positive",
    "-1=Negative,0=Neutral,1=Positive",
    "0=Negative,1=Neutral,2=Positive",
    "0=Negative,2=Neutral,4=Positive",
    "1=Negative,2=Neutral,3=Positive",
    "0=Negative,1=Negative,2=Neutral,3=Positive,4=Positive",
    "1=Negative,2=Negative,3=Neutral,4=Positive,5=Positive",
    "n=Negative,p=Positive",
    "neg=Negative,pos=Positive",
    "neg=Negative,neu=Neutral,pos=Positive",
    "__label__1=Negative,__label__2=Positive",
)
"""Codes for labels in public data sets, each with the names that `SENTIMENT_LABEL_NAMES` would give them."""


class Labels:
    """The labels that the files contain, numbered as they are found. Spellings of one label have one number.

    Spellings differ in letter case, blanks, invisible characters, Unicode form, or as `1`, `1.0` and `+1`.
    """

    def __init__(self, names: Mapping[str, str], known: Iterable[str] = ()) -> None:
        """Rename labels by `names`; labels that are `known` beforehand keep their spelling."""
        self._names = {label_form(label): (label, name) for label, name in names.items()}
        known = tuple(known)
        self._is_known = bool(known)
        self._fixed = {label_form(label): label for label in (*names.values(), *known)}
        self._numbers: dict[str, int] = {}
        self._by_spelling: dict[str, int] = {}
        self._rows: Counter[str] = Counter()
        """Rows by spelling in the files, before names are given."""
        self._spellings: list[list[str]] = []
        """For each label, its spellings in the files."""
        self._forms: list[str] = []

    def number(self, spelling: str) -> int:
        """Return the number of the label with this spelling, and count the row."""
        self._rows[spelling] += 1
        number = self._by_spelling.get(spelling)
        if number is None:
            form = self._named_form(spelling)
            number = self._by_spelling[spelling] = self._numbers.setdefault(form, len(self._numbers))
            if number == len(self._forms):
                self._spellings.append([])
                self._forms.append(form)
            self._spellings[number].append(spelling)
        return number

    def name(self, number: int) -> str:
        """Return a label's name: the one that is set or known, otherwise the most frequent spelling."""
        fixed = self._fixed.get(self._forms[number])
        if fixed is not None:
            return fixed
        return min(self._spellings[number], key=lambda spelling: (-self._rows[spelling], spelling))

    def __len__(self) -> int:
        """Number of different labels found so far."""
        return len(self._forms)

    def known(self, spelling: str) -> str:
        """Return the name of the known or named label with this spelling; empty if there is none."""
        return self._fixed.get(self._named_form(spelling), "")

    def notes(self, numbers: Iterable[int]) -> list[str]:
        """Return what was assumed about the labels with these numbers, in words."""
        notes = []
        chosen = sorted(numbers, key=self.name)
        for number in chosen:
            others = self._unified(number)
            if others:
                told = ", ".join(f"{shown(other)} ({counted(rows, 'row')})" for other, rows in others)
                notes.append(f"The label {shown(self.name(number))} is also written {told}; used one spelling")
        if self._is_known:
            return notes
        if self._names:
            found = set(map(label_form, self._rows))
            missing = [label for form, (label, _) in self._names.items() if form not in found]
            if missing:
                notes.append(f"No row has a label that SENTIMENT_LABEL_NAMES names: {', '.join(missing)}")
            if unnamed := [self.name(number) for number in chosen if self._lacks_name(self._forms[number])]:
                told = ", ".join(map(shown, unnamed))
                notes.append(
                    f"SENTIMENT_LABEL_NAMES gives no name to {told}, which clients then get as a label. Add a name, "
                    f"such as {unnamed[0]}=Neutral"
                )
        elif proposal := self.proposal(chosen):
            notes.append(proposal)
        return notes

    def proposal(self, numbers: Iterable[int]) -> str:
        """Return the names that the labels with these numbers should get if they are codes; empty if they are none."""
        chosen = sorted(numbers, key=self.name)
        names = "" if self._names else _scheme([self._forms[number] for number in chosen])
        if not names:
            return ""
        codes = ", ".join(self.name(number) for number in chosen)
        return f"The labels {codes} look like codes. To give them names, set SENTIMENT_LABEL_NAMES={names}"

    def _named_form(self, spelling: str) -> str:
        """Return the form of a label, or of the name that a setting gives it."""
        form = label_form(spelling)
        return label_form(self._names[form][1]) if form in self._names else form

    def _lacks_name(self, form: str) -> bool:
        """Return whether a label of this form is a number or a code of a known scheme, and stays one."""
        codes = {pair.partition("=")[0] for scheme in _SCHEMES for pair in scheme.split(",")}
        return form not in self._fixed and (form in codes or _WHOLE_NUMBER.fullmatch(form) is not None)

    def _unified(self, number: int) -> list[tuple[str, int]]:
        """Return the other spellings of a label with their rows, without those that a setting names."""
        name = self.name(number)
        others = [
            (spelling, self._rows[spelling])
            for spelling in self._spellings[number]
            if spelling != name and label_form(spelling) not in self._names
        ]
        return sorted(others, key=lambda other: (-other[1], other[0]))


def label_form(label: str) -> str:
    """Return what all spellings of one label have in common."""
    form = " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", label)).split()).casefold()
    number = _WHOLE_NUMBER.fullmatch(form)
    return str(int(number[1])) if number and len(form) < 20 else form


def nearest(label: str, others: Iterable[str]) -> str:
    """Return a hint at the label among `others` that was probably meant; empty if none is similar."""
    found = difflib.get_close_matches(label, list(others), n=1)
    return f"; did you mean {shown(found[0])}?" if found else ""


def _scheme(forms: list[str]) -> str:
    """Return the names for codes of a known scheme; empty if these labels are none."""
    for scheme in _SCHEMES:
        if {pair.partition("=")[0] for pair in scheme.split(",")} == set(forms):
            return scheme
    return ""


def shown(text: str, characters: int = 60) -> str:
    """Return a text in quotes for a message, cut if it is long."""
    return repr(shortened(text, characters))
