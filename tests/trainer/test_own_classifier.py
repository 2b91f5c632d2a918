"""A classifier that somebody fine-tuned: what can be imported, and the message about what cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from common.errors import PipelineError
from common.settings import Settings
from tests.conftest import make_encoder
from tests.trainer.test_no_code_in_models import Payload
from trainer.judging_data import judging_data
from trainer.own_classifier import load_classifier, spelt_as


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder("distilbert", tmp_path_factory.mktemp("distilbert"))


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(saved, tmp_path / "own"))
    configured(directory, id2label={"0": "ham", "1": "spam"}, label2id={"ham": 0, "spam": 1})
    return directory


def configured(directory: Path, **changed: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changed))


def as_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"weights": Payload(directory / "made")}, directory / "pytorch_model.bin")


def as_encoder(directory: Path) -> None:
    """Its head is for another task, which the configuration does not say."""
    model = AutoModelForMaskedLM.from_pretrained(directory)
    model.save_pretrained(directory)
    configured(directory, architectures=None)


def without_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()


def with_other_tokenizer(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{number}": len(vocabulary) + number for number in range(40_000)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(as_pickle, r"weights are a pickle \(pytorch_model\.bin\), .*save_pretrained", id="pickle"),
        pytest.param(lambda own: (own / "model.safetensors").unlink(), "no weights", id="no weights"),
        pytest.param(lambda own: (own / "config.json").unlink(), "contains no config.json", id="no config"),
        pytest.param(
            without_tokenizer, "(no tokenizer.json, which serving needs|cannot be imported)", id="no tokenizer"
        ),
        pytest.param(with_other_tokenizer, r"has [\d,]+ tokens, and its tokenizer 4[\d,]+", id="other tokenizer"),
        pytest.param(
            lambda own: configured(own, architectures=["DistilBertForTokenClassification"]),
            r"another task \(DistilBertForTokenClassification\).*SENTIMENT_BASE_MODEL=",
            id="other task",
        ),
        pytest.param(as_encoder, r"lacks weights of a sequence classifier \(.*SENTIMENT_BASE_MODEL=", id="no head"),
        pytest.param(
            lambda own: configured(own, problem_type="multi_label_classification"),
            "2 outputs for multi label classification",
            id="several labels at once",
        ),
        pytest.param(
            lambda own: configured(own, model_type="secret"), "cannot be imported: .*`secret`", id="unknown family"
        ),
        pytest.param(lambda own: configured(own, model_type="vit"), "'vit', for which .*bert", id="family of pictures"),
        pytest.param(lambda own: configured(own, model_type="t5"), "encoder and a decoder", id="decoder"),
        pytest.param(
            lambda own: configured(own, id2label={"0": "Spam", "1": "spam"}),
            "the same.*: 'Spam', 'spam'",
            id="equal labels",
        ),
        pytest.param(
            lambda own: configured(own, id2label={"0": "#N/A", "1": "spam"}), "cannot be used: '#N/A'", id="no label"
        ),
        pytest.param(lambda own: configured(own, n_heads=0), "cannot be imported: ", id="no attention heads"),
        pytest.param(lambda own: configured(own, id2label=["a", "b"]), "cannot be imported: ", id="list of labels"),
        pytest.param(lambda own: shutil.rmtree(own), "is not a directory", id="no directory"),
    ],
)
def test_what_cannot_be_imported_is_said_with_the_fix(
    own: Path, change: Callable[[Path], object], message: str
) -> None:
    change(own)
    with pytest.raises(PipelineError, match=message) as told:
        load_classifier(Settings(), str(own), [])
    assert str(told.value).startswith((str(own), "Models of the family"))
    assert not (own / "made").exists()


def test_a_name_on_the_hub_is_tried_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.own_classifier.why_not_available", lambda name: f"{name} is not there")
    with pytest.raises(PipelineError, match=r"some/model is not there.*hf download some/model"):
        load_classifier(Settings(), "some/model", [])


def test_labels_are_those_of_the_configuration_or_given(own: Path) -> None:
    assert load_classifier(Settings(), str(own), [])[1] == ("ham", "spam")
    assert load_classifier(Settings(), str(own), ["no", "yes"])[1] == ("no", "yes")
    with pytest.raises(PipelineError, match="has 2 outputs, and --labels names 3: a, b, c"):
        load_classifier(Settings(), str(own), ["a", "b", "c"])


def write(path: Path, labels: tuple[str, ...], texts: int = 40) -> Path:
    rows = [f"{path.stem} text {number},{labels[number % len(labels)]}" for number in range(texts)]
    path.write_text("\n".join(["text,label", *rows, ""]))
    return path


def test_it_is_judged_by_the_files_that_are_there(tmp_path: Path) -> None:
    labels = ("NEGATIVE", "POSITIVE", "NEUTRAL")
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    absent = Settings(train_data=train, val_data=val, state_dir=tmp_path / "state")
    absent.model_fields_set.clear()
    assert judging_data(absent, "own", labels).val.texts == []

    write(val, ("negative", "Positive"))
    data = judging_data(absent, "own", labels)
    assert (len(data.train.texts), len(data.val.texts)) == (0, 40)
    assert set(data.val.labels) == {"NEGATIVE", "POSITIVE"}

    write(train, ("negative", "Positive"))
    data = judging_data(absent, "own", labels)
    assert (len(data.train.texts), len(data.val.texts)) == (40, 40)
    assert spelt_as(labels, data.labels) == ("negative", "Positive", "NEUTRAL")


def test_labels_that_the_classifier_lacks_are_said_with_the_option_that_names_them(tmp_path: Path) -> None:
    settings = Settings(
        train_data=write(tmp_path / "train.csv", ("bad", "good")),
        val_data=write(tmp_path / "val.csv", ("bad", "good")),
        state_dir=tmp_path / "state",
    )
    with pytest.raises(
        PipelineError, match=r"own has the labels LABEL_0, LABEL_1, .*others: bad, good.*--labels bad,good"
    ):
        judging_data(settings, "own", ("LABEL_0", "LABEL_1"))
