"""Data as people have them: one file, three labels as codes, and some bad rows. It trains, and the model serves."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import make_encoder
from tests.lifecycle.conftest import make_served, serving
from tests.lifecycle.learning import BAD, FILLERS, GOOD, learning_settings

pytestmark = pytest.mark.full

CODES = {"-1": BAD, "0": ["cafe"], "1": GOOD}
BAD_ROWS = {"empty text": ",0", "missing label": "a screen,", "spreadsheet error": "#NAME?,1"}


def write_file(path: Path, count: int, bad: int) -> None:
    """Rows of a text and a code, each text once, and as many rows of each kind of `BAD_ROWS` as `bad`."""
    draw = random.Random(1)
    rows: set[str] = set()
    while len(rows) < count:
        code = draw.choices(list(CODES), (3, 1, 2))[0]
        words = [*draw.choices(FILLERS, k=draw.randint(3, 8)), draw.choice(CODES[code])]
        draw.shuffle(words)
        rows.add(f"{' '.join(words)},{code}")
    lines = [*sorted(rows), *(row for row in BAD_ROWS.values() for _ in range(bad))]
    draw.shuffle(lines)
    path.write_text("\n".join(["Review,Sentiment", *lines, ""]), encoding="utf-8")


def test_one_file_with_codes_and_bad_rows_is_trained_on_and_served(tmp_path: Path) -> None:
    write_file(tmp_path / "train.csv", count=970, bad=10)
    make_encoder("bert", tmp_path / "encoder", weight_scale=1)
    names = "-1=Negative,0=Neutral,1=Positive"
    served = make_served(tmp_path, tmp_path, 0, SENTIMENT_LABEL_NAMES=names, **learning_settings(tmp_path))
    environment = {name: value for name, value in served.environment.items() if name != "SENTIMENT_VAL_DATA"}
    served = replace(served, environment=environment)
    for command, told in (("train", "Trained version 1"), ("export", "Version 1 is the one to serve")):
        ended = served.app(command, timeout_s=900)
        assert told in ended.stderr, ended.stderr
    with serving(served):
        texts = ["what a terrible screen", "the cafe of two hours", "this product is good"]
        batch = served.ask("POST", "/predict/batch", json={"texts": texts}).json()
        assert list(batch["predictions"]["label"].values()) == ["Negative", "Neutral", "Positive"]
        (version,) = served.ask("GET", "/models").json()
        check = served.check()
    rejected = dict.fromkeys(BAD_ROWS, 10)
    held_out = version["data"]["held_out"]["rows"]
    assert 80 < held_out < 115
    assert version["data"] == {
        "train": {"rows": 1_000, "kept": 970, "repetitions": 0, "rejected": rejected},
        "held_out": {"rows": held_out, "kept": held_out, "repetitions": 0, "rejected": {}},
    }
    assert (check["state"], check["result"]["problems"]) == ("succeeded", [])
    report = json.loads(served.app("data", "--json").stdout)
    assert report["val"]["held_out"]
    assert report["train"]["rejected"] == rejected
    assert sum(report["labels"].values()) == 970
    assert report["suspicious_labels"] == {"list": str(tmp_path / "state" / "suspicious_labels.csv"), "rows": 0}
