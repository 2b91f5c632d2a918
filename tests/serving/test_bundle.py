"""A version's bundle is read whole, or it is said what is wrong with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from errors import PipelineError
from serving.bundle import Bundle
from serving.engine import Engine
from tests import conftest


def test_what_was_saved_is_loaded(bert_bundle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_bundle, tmp_path / "1")
    bundle = replace(Bundle.load(directory), labels=("schlecht", "très bien", "好"), metrics={"accuracy": 0.5})
    bundle.save(directory)
    assert Bundle.load(directory) == bundle


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"no complete version: model\.onnx, bundle\.json missing"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"version": 1, "lab', id="cut"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"version": 1, "labels": ["a", "b"]}', id="fields missing"),
        pytest.param(b"null", id="null"),
    ],
)
def test_damaged_description_is_named(bert_bundle: Path, tmp_path: Path, content: bytes) -> None:
    directory = shutil.copytree(bert_bundle, tmp_path / "1")
    (directory / "bundle.json").write_bytes(content)
    with pytest.raises(PipelineError, match=r"1/bundle\.json is damaged: "):
        Bundle.load(directory)


def test_field_of_another_release_is_told(bert_bundle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_bundle, tmp_path / "1")
    fields = json.loads((directory / "bundle.json").read_text())
    (directory / "bundle.json").write_text(json.dumps(fields | {"tomorrow": 1}))
    with pytest.raises(PipelineError, match=r"damaged: .*tomorrow"):
        Bundle.load(directory)


def test_encoder_of_few_positions_is_warmed_up_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are longer than its texts may be."""
    positions = 100
    monkeypatch.setitem(conftest.ENCODERS, "bert", conftest.ENCODERS["bert"] | {"max_position_embeddings": positions})
    monkeypatch.setattr(conftest, "MAX_LENGTH", positions)
    bundle = conftest.make_bundle(conftest.make_encoder("bert", tmp_path / "encoder"), tmp_path / "1")
    with Engine(bundle, conftest.REFERENCE, cores=2) as engine:
        assert np.allclose(engine.classify(["good " * 1000, "good"]).values.sum(axis=1), 1, atol=1e-5)
