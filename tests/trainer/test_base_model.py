"""The base model: what was asked for, or a message that says why not."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.errors import PipelineError
from common.settings import Settings
from tests.conftest import SENTENCES, make_encoder
from tests.pages import blocks
from trainer.base_model import load_base_model

LABELS = ("bad", "good", "so-so")


def cut(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:100])


def without(*names: str) -> Callable[[Path], object]:
    def remove(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return remove


def test_encoder_gets_a_head_for_the_labels_and_keeps_its_weights(bert_encoder: Path) -> None:
    """Also an encoder that was fine-tuned before, for another number of labels."""
    base = load_base_model(Settings(base_model=str(bert_encoder), max_length=64), LABELS)
    assert base.name == str(bert_encoder)
    assert base.model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert base.model.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    weights = load_file(bert_encoder / "model.safetensors")
    loaded = base.model.state_dict()
    assert loaded["bert.pooler.dense.weight"].equal(weights["bert.pooler.dense.weight"])
    assert loaded["classifier.weight"].shape[0] == 3
    assert base.max_length == 64
    ids = [base.tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    assert len({tuple(text) for text in ids}) == len(SENTENCES)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(without("config.json"), id="no config"),
        pytest.param(cut("config.json"), id="cut config"),
        pytest.param(without("model.safetensors"), id="no weights"),
        pytest.param(cut("model.safetensors"), id="cut weights"),
        pytest.param(without("tokenizer.json"), id="no tokenizer"),
        # transformers makes a tokenizer of an empty vocabulary then, for which every word is unknown.
        pytest.param(without("tokenizer.json", "tokenizer_config.json"), id="nothing of a tokenizer"),
        pytest.param(cut("tokenizer.json"), id="cut tokenizer"),
    ],
)
def test_damaged_directory_is_named(bert_encoder: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    damage(directory)
    with pytest.raises(PipelineError) as told:
        load_base_model(Settings(base_model=str(directory)), LABELS[:2])
    assert str(directory) in str(told.value)


def test_another_architecture_is_named(bert_encoder: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "electra"}))
    with pytest.raises(PipelineError, match=r"'electra' cannot be packed; .*: bert, distilbert, roberta"):
        load_base_model(Settings(base_model=str(directory)), LABELS)


def test_a_model_that_no_onnx_file_holds_is_told_before_its_weights_are_read(
    bert_encoder: Path, tmp_path: Path
) -> None:
    """A BERT of 8.4 million words of 64 numbers: 2.00 GiB, and there are no weights."""
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 8_388_608}))
    with pytest.raises(
        PipelineError, match=r"has 537M parameters, which are 2\.0 GiB, .* at most 2 GiB \(533M\)\. Choose"
    ):
        load_base_model(Settings(base_model=str(directory)), LABELS)


@pytest.mark.parametrize("architecture", ["distilbert", "roberta"])
def test_texts_are_cut_where_the_positions_end(architecture: str, tmp_path: Path) -> None:
    encoder = make_encoder(architecture, tmp_path / architecture)
    base = load_base_model(Settings(base_model=str(encoder), max_length=4096), LABELS[:2])
    inputs = base.tokenizer(" ".join(SENTENCES * 50), truncation=True, max_length=base.max_length, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == base.max_length
    assert base.model(**inputs).logits.isfinite().all()  # one token more would have no position


def test_page_fetches_what_is_needed_by_options_that_there_are() -> None:
    """docs/how-to-bert-base.md; its other command is run with the loop."""
    fetch, retrain = blocks("docs/how-to-bert-base.md")
    program, command, *arguments = fetch.split()
    told = subprocess.run(
        [Path(sys.prefix) / "bin" / program, command, "--help"], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    options = [word for word in arguments if word.startswith("--")]
    assert options
    assert all(re.search(rf"^\s+{option} ", told, flags=re.MULTILINE) for option in options)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(arguments)
    assert retrain == "python app.py retrain"
