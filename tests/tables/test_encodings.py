"""The encoding of a file is found by its bytes, and lines that are not in it are faulty rows."""

from codecs import BOM_UTF8
from pathlib import Path

import pytest

from tables.labelled import ColumnChoice, open_labelled

TEXTS = {
    "windows-1252": [
        "Très bon appareil, déjà conseillé.",
        "Größe passt nicht.",
        "¿Qué más? ¡Muy bueno!",
        "It’s 20 € – fair",
    ],
    "windows-1250": [
        "Świetny produkt, polecam każdemu, bardzo dobra jakość",
        "Velmi dobrý výrobek, doporučuji všem přátelům",
    ],
    "windows-1251": ["Отличный товар, всем рекомендую", "Плохое качество, деньги на ветер"],
    "windows-1253": ["Πολύ καλό προϊόν, το συνιστώ σε όλους", "Κακή ποιότητα, μην το αγοράσετε"],
    "windows-1254": ["Çok güzel bir ürün, herkese tavsiye ederim", "Kötü kalite, paranıza yazık, beğenmedim"],
    "windows-1255": ["מוצר מעולה, ממליץ לכולם", "איכות גרועה, לא לקנות"],
    "windows-1256": ["منتج رائع وأنصح به الجميع", "جودة سيئة لا تشتريه"],
    "koi8-r": ["Отличный товар, всем рекомендую", "Плохое качество, деньги на ветер"],
    "gb18030": ["非常好的产品，推荐给大家", "质量很差，不要买，送货慢，味道不好"],
    "big5": ["非常好的產品，推薦給大家", "品質很差，不要買，送貨很慢，味道不好"],
    "shift-jis": ["とても良い商品です。おすすめします。", "品質が悪い、買わないでください。"],
    "euc-kr": ["정말 좋은 제품입니다 추천합니다", "품질이 나빠요 사지 마세요 배송이 느려요"],
    "mac-roman": ["Très bon appareil, déjà conseillé.", "Größe passt nicht, schöne Farbe"],
}


def read(path: Path) -> tuple[str, list[str], list[str], list[str]]:
    with open_labelled(path, ColumnChoice()) as file:
        rows = list(file.rows())
    return (
        file.encoding,
        [row.text for row in rows if not row.fault],
        [row.fault for row in rows if row.fault],
        file.notes,
    )


@pytest.mark.parametrize("mark", [b"", BOM_UTF8], ids=["", "with the mark of UTF-8"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_single_and_multi_byte_encodings(tmp_path: Path, encoding: str, mark: bytes) -> None:
    path = tmp_path / "a.tsv"
    texts = ["A plain line.", *TEXTS[encoding]] * 10
    path.write_bytes(mark + ("text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts)).encode(encoding))
    assert read(path) == (encoding, texts, [], [f"read as {encoding}, the encoding that was detected"])


def test_the_mark_of_utf_8_before_json_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(BOM_UTF8 + '{"text": "schöne Größe", "label": "x"}\n'.encode("cp1252") * 30)
    assert read(path)[:3] == ("windows-1252", ["schöne Größe"] * 30, [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ngut für alle,x\n".encode(encoding))
    assert read(path)[:3] == (encoding, ["gut für alle"], [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marks(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\r\ngut für 👍,x\r\n".encode(encoding))
    assert read(path) == (
        encoding.removesuffix("-sig"),
        ["gut für 👍"],
        [],
        [f"read as {encoding}"] * ("8" not in encoding),
    )


def test_accents_that_come_late(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"a plain line,x\n" * 200_000 + "schöne Größe,x\n".encode("cp1252"))
    encoding, texts, faults, _ = read(path)
    assert (encoding, texts[-1], faults) == ("windows-1252", "schöne Größe", [])


@pytest.mark.parametrize("mark", [b"", BOM_UTF8], ids=["", "with its mark"])
def test_a_damaged_line_in_utf_8_does_not_change_the_encoding(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(mark + "text,label\nschöne Größe,x\n".encode() + b"caf\xe9,x\n" + "“good”,x\n".encode())
    encoding, texts, faults, notes = read(path)
    assert (encoding, texts, notes) == ("utf-8", ["schöne Größe", "“good”"], [])
    assert faults == ["undecodable: byte 0xe9 at position 3 is not utf-8"]


def test_half_a_character_at_the_end_of_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ngood,x\nbad,y".encode("utf-16")[:-1])
    _, texts, faults, _ = read(path)
    assert texts == ["good"]
    assert [fault.partition(":")[0] for fault in faults] == ["undecodable"]
