"""Loads a sequence classifier that is fine-tuned already."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.errors import PipelineError
from common.settings import Settings
from tables.labels import label_form, shown
from trainer.architectures import OTHER_FAMILY, check_architecture
from trainer.base_model import (
    BaseModel,
    silence_loading,
    size_fault,
    tokenizer_fault,
    warn_if_unpacked,
    why_not_available,
    why_not_loaded,
)
from trainer.base_tokenizer import max_tokens
from trainer.rows import label_fault

_HEAD = "ForSequenceClassification"
LONGEST_LABEL = 240
"""Maximum characters of a label."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def load_classifier(settings: Settings, source: str, labels: Sequence[str]) -> tuple[BaseModel, tuple[str, ...]]:
    """Load the classifier in a directory or of the hub, and its tokenizer; return them with the labels of its outputs.

    `labels` are the names of its outputs in their order; without any, its configuration has them.

    Raises:
        PipelineError: it cannot be loaded or served, is no sequence classifier, or the labels do not fit.
    """
    silence_loading()
    try:
        place = _place(source)
        # Never run code that comes with a model (trust_remote_code), and never read a pickle (use_safetensors).
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _check_config(source, config)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        _check_tokenizer(source, config, tokenizer)
        names = _labels(source, config, labels)
        model: PreTrainedModel
        model, found = AutoModelForSequenceClassification.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except PipelineError:
        raise
    except Exception as error:  # whatever transformers raises about files by strangers
        raise PipelineError(
            f"{source} cannot be imported: {why_not_loaded(error)} A classifier is needed as `save_pretrained` of "
            "transformers writes it: config.json, model.safetensors and tokenizer.json."
        ) from error
    if missing := found["missing_keys"]:
        raise PipelineError(
            f"{source} lacks weights of a sequence classifier ({', '.join(sorted(missing)[:3])}), so it is not "
            f"fine-tuned as one. To fine-tune it here, set SENTIMENT_BASE_MODEL={source} and run `python app.py train`."
        )
    warn_if_unpacked(f"classifier {source}", config)
    return BaseModel(source, model, tokenizer, max_tokens(config.to_dict(), settings)), names


def spelt_as(labels: Sequence[str], data_labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classifier's `labels`, each in the spelling of the data where they have it: `POSITIVE`, `Positive`."""
    spellings = {label_form(label): label for label in data_labels}
    return tuple(spellings.get(label_form(label), label) for label in labels)


def _place(source: str) -> str:
    """Return the directory `source`, or its name on the hub if it can be reached."""
    directory = Path(source).expanduser()
    if directory.is_dir():
        _check_files(source, directory)
        return str(directory)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or directory.exists():
        raise PipelineError(
            f"{source} is not a directory. Name the directory of a saved classifier, or a classifier on the hub."
        )
    if fault := why_not_available(source):
        raise PipelineError(
            f"{source} cannot be imported: there is no such directory, and as a name on the hub, {fault}. Download it "
            f"where there is a network (`hf download {source} --local-dir DIRECTORY`), and import the directory."
        )
    return source


def _check_files(source: str, directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise PipelineError(
            f"{source} contains no config.json, so it is not a saved model. Name the directory into which "
            "`save_pretrained` of transformers wrote the classifier and its tokenizer."
        )
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    problem = "it has no weights"
    if pickles:
        problem = f"its weights are a pickle ({pickles[0]}), which can run code when it is read"
    raise PipelineError(
        f"{source} contains no model.safetensors: {problem}. If you trust it, load it with transformers and save it "
        "with `model.save_pretrained(DIRECTORY)`, which writes safetensors."
    )


def _check_config(source: str, config: PretrainedConfig) -> None:
    check_architecture(config.to_dict())
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise PipelineError(
            f"{source} is of the family {config.model_type!r}, for which transformers has no sequence classifier. "
            f"Import one {OTHER_FAMILY}."
        )
    others = [name for name in config.architectures or [] if not name.endswith(_HEAD)]
    if others:
        raise PipelineError(
            f"{source} is made for another task ({others[0]}), and a sequence classifier is needed. To fine-tune its "
            f"encoder on your data, set SENTIMENT_BASE_MODEL={source} and run `python app.py train`."
        )
    if (config.num_labels or 0) < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or "regression"
        raise PipelineError(
            f"{source} gives {config.num_labels} outputs for {kind.replace('_', ' ')}, and a classifier is needed "
            "that chooses one of two or more labels (single_label_classification). Import another."
        )
    if fault := size_fault(config):
        raise PipelineError(f"{source} {fault}. Import a smaller one.")


def _check_tokenizer(source: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    fault = tokenizer_fault(tokenizer)
    if not fault and len(tokenizer) > int(config.vocab_size):
        fault = f"has {config.vocab_size:,} tokens, and its tokenizer {len(tokenizer):,}"
    if fault:
        raise PipelineError(
            f"{source} {fault}. Save the tokenizer that it was trained with beside it: "
            "`tokenizer.save_pretrained(DIRECTORY)`."
        )


def _labels(source: str, config: PretrainedConfig, given: Sequence[str]) -> tuple[str, ...]:
    configured = sorted((int(index), str(label)) for index, label in (config.id2label or {}).items())
    names = tuple(label.strip() for label in given or [label for _, label in configured])
    if len(names) != config.num_labels:
        raise PipelineError(
            f"{source} has {config.num_labels} outputs, and --labels names {len(names)}: {', '.join(names)}. Name one "
            "for each output, in their order."
        )
    forms = {label_form(name) for name in names}
    unusable = [name for name in names if label_fault(name) or len(name) > LONGEST_LABEL]
    if unusable or "" in forms or len(forms) < len(names):
        told = ", ".join(map(shown, unusable or names))
        raise PipelineError(
            f"{source} has labels that are empty, the same, or cannot be used: {told}. Name one for each output, in "
            "their order: `--labels negative,positive`."
        )
    return names
