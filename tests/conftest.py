"""What several tests stand on: small random encoders with real tokenizers, and bundles made of them."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from export.packed_graph import export_packed_graph
from serving.bundle import TOKENIZER, Bundle
from serving.runtime import FLOAT32, FLOAT_GRAPH, ONNXRUNTIME, Variant

REFERENCE = Variant(ONNXRUNTIME, FLOAT32)
"""What every processor runs, with the same answers."""

LABELS = ("Negative", "Positive")
MAX_LENGTH = 320
ENCODERS = {
    "bert": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128},
    "distilbert": {"n_layers": 2, "n_heads": 4, "dim": 64, "hidden_dim": 128},
    "roberta": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "pad_token_id": 1,
        "max_position_embeddings": 514,
    },
}
SENTENCES = [
    "I love this product!",
    "This is terrible.",
    "The battery lasts all day, and the screen is bright.",
    "What a waste of two hours; the plot makes no sense at all.",
    "good",
    "Naïve café — 你好, мир 🙂",
]


def make_encoder(architecture: str, directory: Path, weight_scale: float = 15) -> Path:
    """A random encoder of the architecture with a real tokenizer, saved as the hub's models are."""
    tokenizer = make_tokenizer(architecture)
    torch.manual_seed(7)
    config = AutoConfig.for_model(
        architecture, vocab_size=tokenizer.vocab_size, num_labels=len(LABELS), **ENCODERS[architecture]
    )
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    # Initial weights are so small that every text gets nearly the same answer; larger ones tell texts apart.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(weight_scale)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    if architecture == "roberta":
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        raw = Tokenizer(models.BPE(unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=specials))
        raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials))
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_bundle(encoder: Path, directory: Path, version: int = 1) -> Path:
    """A complete version made of a saved encoder, as the export lays it out."""
    directory.mkdir(parents=True)
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    export_packed_graph(model, temperature=1.0, path=directory / FLOAT_GRAPH)
    (directory / TOKENIZER).write_bytes((encoder / TOKENIZER).read_bytes())
    Bundle(
        version=version,
        labels=LABELS,
        max_length=MAX_LENGTH,
        padding_token=model.config.pad_token_id,
        base_model="random",
        data_fingerprint="",
        mlflow_run="",
        metrics={},
        proofs=(),
    ).save(directory)
    return directory


@pytest.fixture(scope="session")
def bert_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def bert_bundle(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(bert_encoder, tmp_path_factory.mktemp("bundle") / "1")
