"""A version's bundle is read whole, or it is said what is wrong with it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import PipelineError
from serving.backend.engine import Engine
from serving.model_repo.bundle import Bundle
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


PROOF: dict[str, object] = {
    "runtime": "onnxruntime",
    "precision": "float32",
    "arithmetic": "avx2",
    "texts": 200,
    "mixes": 5,
    "label_agreement": 1,
    "confident_agreement": 1.0,
    "largest_difference": 0.001,
    "largest_spread": 0.001,
    "accuracy": 0.9,
    "macro_f1": 0.9,
    "tokens_per_s": 1e4,
}


@pytest.fixture
def described(bert_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Loads the bundle with other fields in its description."""
    directory = shutil.copytree(bert_bundle, tmp_path / "1")
    description = directory / "bundle.json"
    fields = json.loads(description.read_text())

    def load(**changed: object) -> Bundle:
        description.write_text(json.dumps({**fields, "proofs": [PROOF], **changed}))
        return Bundle.load(directory)

    return load


def test_what_a_newer_release_added_is_ignored(described: Callable[..., Bundle]) -> None:
    newer = described(tomorrow={"a": [1]}, proofs=[{**PROOF, "energy": 3}])
    assert newer == described()
    assert len(newer.proofs) == 1


@pytest.mark.parametrize("unknown", [{"runtime": "tomorrow's"}, {"precision": "int4"}])
def test_a_proof_of_a_runtime_of_a_newer_release_is_ignored(
    described: Callable[..., Bundle], unknown: dict[str, object]
) -> None:
    """Or the version would be run in a way that nobody proved."""
    assert described(proofs=[PROOF, {**PROOF, **unknown}]) == described()


@pytest.mark.parametrize("stage", ["first", "full"])
def test_a_first_stage_of_a_newer_release_is_ignored_and_a_missing_one_is_named(
    described: Callable[..., Bundle], stage: str
) -> None:
    variant = {"runtime": "onnxruntime", "precision": "float32"}
    figures = dict.fromkeys(("threshold", "disagreement", "limit", "share", "gain"), 0.5)
    certificate = {**figures, "texts": 1_000, "differing": 3, "origin": "half", "arithmetic": "avx2"}
    certificate |= {"first": variant, "full": variant}
    assert described(first_stage={**certificate, stage: {**variant, "precision": "int4"}}) == described()
    with pytest.raises(PipelineError, match=r"1/first_stage is no complete version: model\.onnx"):
        described(first_stage=certificate)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"version": "1"}, "version: Input should be a valid integer"),
        ({"labels": "ab"}, "labels: Input should be a valid array"),
        ({"labels": [1, 2]}, "labels.0: Input should be a valid string"),
        ({"metrics": [0.5]}, "metrics: Input should be an object"),
        ({"base_model": None}, "base_model: Input should be a valid string"),
        ({"proofs": {}}, "proofs: Input should be a valid array"),
        ({"proofs": [{**PROOF, "runtime": 1}]}, "proofs.0.runtime: Input should be 'onnxruntime' or 'openvino'"),
        ({"proofs": [{**PROOF, "tokens_per_s": "1e4"}]}, "proofs.0.tokens_per_s: Input should be a valid number"),
    ],
)
def test_a_known_field_of_another_type_is_damage(
    described: Callable[..., Bundle], changed: dict[str, object], told: str
) -> None:
    with pytest.raises(PipelineError, match=rf"1/bundle\.json is damaged: {re.escape(told)}"):
        described(**changed)


def test_encoder_of_few_positions_is_warmed_up_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are longer than its texts may be."""
    positions = 100
    monkeypatch.setitem(conftest.ENCODERS, "bert", conftest.ENCODERS["bert"] | {"max_position_embeddings": positions})
    monkeypatch.setattr(conftest, "MAX_LENGTH", positions)
    bundle = conftest.make_bundle(conftest.make_encoder("bert", tmp_path / "encoder"), tmp_path / "1")
    with Engine(bundle, conftest.REFERENCE, cores=2) as engine:
        assert np.allclose(engine.classify(["good " * 1000, "good"]).values.sum(axis=1), 1, atol=1e-5)
