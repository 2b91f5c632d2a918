"""Finds the encoding of a text file from a sample of its bytes."""

import codecs
import re
from dataclasses import dataclass
from typing import NamedTuple

from charset_normalizer import from_bytes

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CANDIDATES = [f"cp{page}" for page in (850, 874, 932, 949, *range(1250, 1258))]
_CANDIDATES += ["big5", "euc_jp", "gb18030", "koi8_r", "mac_roman"]
_SHOWN = {"cp874": "tis-620", "cp932": "shift-jis", "cp949": "euc-kr"}
_SAMPLED_BYTES = 32_768
_MANY_NULS, _FEW_NULS = 0.7, 0.1
_MARK_WEIGHT = 10
"""UTF-8's mark counts as so many lines in UTF-8."""

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_MARKS_AND_SIGNS = "‘’“”„–—…•€£§°«»¡¿™®©´\xa0"
_LETTERS = re.compile(r"[^\W\d_]")
_MARK_IN_WORD = re.compile(r"[^\W\d_][“”„•…][^\W\d_]")


class _Plausible(NamedTuple):
    """What a text in an encoding consists of. Texts in another encoding that are wrongly read in it do not."""

    codec: str
    characters: re.Pattern[str]
    """The usual characters that are not ASCII."""
    least: float
    """Least share of them among all that are not ASCII."""
    most_letters: float
    """Highest share of letters that are not ASCII among all letters."""


_PLAUSIBLE = (
    _Plausible("cp1252", re.compile(f"[À-ÏÑ-ÖØ-Üß-ïñ-öø-üÿŒœ{_MARKS_AND_SIGNS}]"), 0.98, 0.34),
    _Plausible("cp1254", re.compile(f"[ÂÇÎÖÛÜâçîöûüĞğİıŞş{_MARKS_AND_SIGNS}]"), 0.98, 0.34),
    _Plausible("cp1255", re.compile(f"[א-ת{_MARKS_AND_SIGNS}]"), 0.98, 1.0),
    _Plausible("cp932", re.compile("[ぁ-んァ-ヶー、。]"), 0.3, 1.0),
)
"""Encodings that charset-normalizer confuses with similar ones."""


@dataclass(frozen=True)
class Encoding:
    """An encoding that was found."""

    name: str
    """As in "utf-8", "utf-16" or "windows-1252"."""
    codec: str
    """Python's name of it."""
    is_guessed: bool
    """True if neither a mark nor the bytes prove it."""


UTF_8 = Encoding("utf-8", "utf-8", is_guessed=False)


def by_start(start: bytes) -> Encoding | None:
    """Return the encoding that a byte order mark, or the NUL bytes of UTF-16 without one, give away.

    UTF-8's mark is no proof: some programs write it before text in another encoding.
    """
    for mark, name in _MARKS:
        if start.startswith(mark):
            return Encoding(name, name, is_guessed=False)
    pairs = len(start) // 2
    if pairs:
        first, second = start[0::2].count(0) / pairs, start[1::2].count(0) / pairs
        if second > _MANY_NULS and first < _FEW_NULS:
            return Encoding("utf-16-le", "utf-16-le", is_guessed=True)
        if first > _MANY_NULS and second < _FEW_NULS:
            return Encoding("utf-16-be", "utf-16-be", is_guessed=True)
    return None


def by_sample(sample: bytes, *, is_marked: bool = False) -> Encoding:
    """Return the encoding of a sample of whole lines, which UTF-8's mark may have preceded."""
    lines = [line for line in sample.replace(b"\r", b"\n").split(b"\n") if not line.isascii()]
    mark = _MARK_WEIGHT * is_marked
    if (sum(map(_is_utf8, lines)) + mark) * 2 >= len(lines) + mark:
        return UTF_8  # with at most half of the lines damaged
    text = b"\n".join(line for line in lines if not _is_utf8(line))[:_SAMPLED_BYTES]
    codec = next((choice.codec for choice in _PLAUSIBLE if _is_plausible(text, choice)), None) or _detected(text)
    return Encoding(_shown(codec), codec, is_guessed=True)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_plausible(sample: bytes, choice: _Plausible) -> bool:
    text = sample.decode(choice.codec, errors="replace")
    special = _NOT_ASCII.findall(text)
    if len(choice.characters.findall(text)) < choice.least * len(special) or _MARK_IN_WORD.search(text):
        return False
    return sum(map(str.isalpha, special)) <= choice.most_letters * len(_LETTERS.findall(text))


def _detected(sample: bytes) -> str:
    best = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    return best.encoding if best and best.encoding in _CANDIDATES else "cp1252"


def _shown(codec: str) -> str:
    if codec.startswith("cp125"):
        return f"windows-{codec.removeprefix('cp')}"
    return _SHOWN.get(codec, codec.replace("_", "-"))
