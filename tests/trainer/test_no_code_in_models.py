"""A model that somebody else made is data: nothing in it is run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import PipelineError
from common.settings import Settings
from trainer.base_model import load_base_model

LABELS = ("Negative", "Positive")


class Payload:
    """Pickled, it makes a directory when it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def encoder(bert_encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_encoder, tmp_path / "encoder"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made"


def load(encoder: Path) -> None:
    load_base_model(Settings(base_model=str(encoder)), LABELS)


def test_the_payload_works(made: Path, tmp_path: Path) -> None:
    torch.save({"weights": Payload(made)}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert made.exists()


def test_weights_as_a_pickle_are_refused_unread(encoder: Path, made: Path) -> None:
    (encoder / "model.safetensors").unlink()
    torch.save({"weights": Payload(made)}, encoder / "pytorch_model.bin")
    with pytest.raises(PipelineError, match=r"cannot be loaded: .*model\.safetensors"):
        load(encoder)
    assert not made.exists()


def test_a_pickle_beside_the_weights_is_passed_over(encoder: Path, made: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        torch.save({"weights": Payload(made)}, encoder / name)
    load(encoder)
    assert not made.exists()


def test_code_beside_the_weights_is_not_run(encoder: Path, made: Path) -> None:
    code = f"import os\nos.mkdir({str(made)!r})\nclass Evil: pass\n"
    (encoder / "evil.py").write_text(code)
    config = json.loads((encoder / "config.json").read_text())
    names = ("AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer")
    (encoder / "config.json").write_text(json.dumps(config | {"auto_map": dict.fromkeys(names, "evil.Evil")}))
    load(encoder)
    assert not made.exists()
    (encoder / "config.json").write_text(
        json.dumps(config | {"model_type": "evil", "auto_map": dict.fromkeys(names, "evil.Evil")})
    )
    with pytest.raises(PipelineError):
        load(encoder)
    assert not made.exists()
