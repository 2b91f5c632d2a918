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
from transformers import AutoTokenizer

from common.errors import PipelineError
from common.settings import Settings
from serving.backend.stage import load_tokenizer
from tests.conftest import SENTENCES, make_encoder
from tests.pages import blocks
from trainer.base_model import check_base_model, load_base_model

LABELS = ("bad", "good", "so-so")
FAMILY_TOKENIZERS = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "albert": "AlbertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}


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


def test_what_needs_no_weights_is_checked_before_a_quick_version_is_trained(
    bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    without("model.safetensors")(directory)
    check_base_model(Settings(base_model=str(directory)))
    check_base_model(Settings(base_model="packaged"))
    check_base_model(Settings())
    cut("tokenizer.json")(directory)
    for name in (str(directory), str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(PipelineError, match=rf"{name}' \(SENTIMENT_BASE_MODEL\) cannot be loaded: "):
            check_base_model(Settings(base_model=name))
    assert caplog.messages == []
    monkeypatch.setattr("trainer.base_model.why_not_available", lambda _: "no network")
    check_base_model(Settings(base_model="some/model"))
    (line,) = caplog.messages
    assert line.startswith("The base model 'some/model' (SENTIMENT_BASE_MODEL) cannot be loaded now: no network. ")


def test_a_model_with_a_decoder_is_named(bert_encoder: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    (directory / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(PipelineError, match=r"'t5' have an encoder and a decoder.*: bert, distilbert, roberta"):
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


def test_a_family_that_transformers_has_no_classifier_for_is_named(bert_encoder: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    (directory / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(PipelineError, match=rf"'{directory}' \(SENTIMENT_BASE_MODEL\) cannot be loaded: .*ViT"):
        load_base_model(Settings(base_model=str(directory)), LABELS)


def test_a_tokenizer_that_cannot_pad_is_named(bert_encoder: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert_encoder, tmp_path / "encoder")
    options = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(options | {"pad_token": None}))
    with pytest.raises(PipelineError, match=rf"{directory}' has no padding token"):
        load_base_model(Settings(base_model=str(directory)), LABELS)


def test_what_cannot_be_packed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for family, options in {"deberta-v2": {"conv_kernel_size": 3}, "megatron-bert": {}, "bert": {}}.items():
        encoder = make_encoder(family, tmp_path / family, **options)
        caplog.clear()
        assert load_base_model(Settings(base_model=str(encoder)), LABELS[:2]).name == str(encoder)
        said = f"The base model {encoder} cannot be packed: " in caplog.text
        assert said == (family != "bert")


@pytest.mark.parametrize(
    ("family", "positions", "tokens"),
    [
        *((family, 72, 72) for family in ("bert", "distilbert", "electra", "albert", "deberta-v2", "modernbert")),
        *((family, 72, 70) for family in ("roberta", "xlm-roberta", "camembert", "mpnet")),
        ("megatron-bert", 72, 64),  # not packed, so its rows have positions up to a multiple of 16
    ],
)
def test_texts_are_cut_where_the_positions_end(family: str, positions: int, tokens: int, tmp_path: Path) -> None:
    encoder = make_encoder(family, tmp_path / family, max_position_embeddings=positions)
    base = load_base_model(Settings(base_model=str(encoder), max_length=4096), LABELS[:2])
    assert base.max_length == tokens
    inputs = base.tokenizer(" ".join(SENTENCES * 50), truncation=True, max_length=base.max_length, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == base.max_length
    assert base.model(**inputs).logits.isfinite().all()  # one token more would have no position


@pytest.mark.parametrize(("family", "tokenizer"), FAMILY_TOKENIZERS.items())
def test_serving_reads_the_same_tokens_as_the_training(family: str, tokenizer: str, tmp_path: Path) -> None:
    """`transformers` has a tokenizer of its own for each family, and serving has only `tokenizer.json`."""
    encoder = make_encoder(family, tmp_path / family)
    options = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps(options | {"tokenizer_class": tokenizer}))
    base = load_base_model(Settings(base_model=str(encoder)), LABELS[:2])
    assert type(base.tokenizer).__name__ == tokenizer
    base.tokenizer.save_pretrained(tmp_path / "trained")
    trained = AutoTokenizer.from_pretrained(tmp_path / "trained")
    served = load_tokenizer(tmp_path / "trained" / "tokenizer.json", 20)
    for text in [*SENTENCES, " ".join(SENTENCES), "", "  two  spaces\n"]:
        tokens = base.tokenizer(text, truncation=True, max_length=20)["input_ids"]
        assert trained(text, truncation=True, max_length=20)["input_ids"] == tokens
        assert served.encode(text).ids == tokens
        assert (tokens[0], tokens[-1]) == (base.tokenizer.cls_token_id, base.tokenizer.sep_token_id)
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id


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
