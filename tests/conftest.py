"""The two tiers, the order of tests, and what several tests use: small random encoders and bundles made of them."""

import logging
import os
import random
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from common.home import HOME
from common.once import LOGGED
from common.proxies import prepare_proxies
from export.graph import export_graph
from lifecycle.jobs import import_classifier, job_process
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.variants import FLOAT32, FLOAT_GRAPH, ONNXRUNTIME, Variant
from tests.pages import ORDERED
from tests.schedule import (  # noqa: F401 — pytest calls the hooks here
    INDEPENDENT,
    pytest_testnodedown,
    pytest_xdist_make_scheduler,
)
from trainer.architectures import why_unpacked

# As app.py does: tests call servers on this machine.
prepare_proxies(os.environ)

# Each client of httpx reads all certificates, in 80 ms in which no other thread runs; the tests' clients share them.
# The name is not exported: httpx imports it there.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)  # type: ignore[attr-defined]

# Hypothesis' limits on time would fail tests on a busy machine; all examples of a test may share its fixtures.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tests")

REFERENCE = Variant(ONNXRUNTIME, FLOAT32)
"""What every processor runs, with the same answers."""

LABELS = ("Negative", "Positive")
MAX_LENGTH = 320
_SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
}
_AFTER_PADDING = _SMALL | {"pad_token_id": 1, "max_position_embeddings": 514}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "distilbert": {"n_layers": 2, "n_heads": 4, "dim": 64, "hidden_dim": 128},
    "roberta": _AFTER_PADDING,
    "xlm-roberta": _AFTER_PADDING,
    "camembert": _AFTER_PADDING,
    "electra": _SMALL | {"embedding_size": 32},
    "mpnet": _AFTER_PADDING,
    "albert": _SMALL | {"embedding_size": 32},
    # As DeBERTa-v3 is configured: no absolute positions, disentangled attention with buckets.
    "deberta-v2": _SMALL
    | {
        "relative_attention": True,
        "position_buckets": 32,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    # The second layer's attention reaches four tokens to each side.
    "modernbert": _SMALL | {"local_attention": 8, "pad_token_id": 0},
}
"""Small configurations of the families that can be packed."""
_BYTE_PAIRS = ("roberta", "mpnet")
_SENTENCE_PIECES = ("xlm-roberta", "camembert", "deberta-v2", "albert")
SENTENCES = [
    "I love this product!",
    "This is terrible.",
    "The battery lasts all day, and the screen is bright.",
    "What a waste of two hours; the plot makes no sense at all.",
    "good",
    "Naïve café — 你好, мир 🙂",
]

FULL_FIXTURES = {"as_in_the_image", "pipeline", "postgres_server"}
"""Tests that use one of these, directly or through another fixture, belong to the full tier."""
MEASURE = "tests/benchmarks/"
"""Tests below it measure, and so need the machine to themselves."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", help="run modules, and the tests of each, in a random order")


def pytest_configure() -> None:
    # A test's own directory is a pipeline's home, not the checkout.
    os.environ[HOME] = "."
    # A failing test's report shows the pipeline's log; one line for each HTTP request would bury it.
    for name in ("httpx", "httpcore", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test runs in its own process changes nothing for later tests: priority, umask, log, signal handlers.

    A job that loses its lease fails the test, and does not end the process.
    """
    monkeypatch.setenv(LOGGED, "")
    monkeypatch.setattr(job_process, "modest", lambda _share: nullcontext())
    for module in (job_process, import_classifier):
        monkeypatch.setattr(module, "_die", lose_lease)
    umask = os.umask(0o022)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.umask(umask)


def lose_lease(*_: object) -> None:
    raise AssertionError("The lease of a job that runs in the process of the tests was lost.")


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("shuffle")
    return "" if seed is None else f"order: random, seed {seed}"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(MEASURE):
            item.add_marker(pytest.mark.alone)
        if item.get_closest_marker("alone") or FULL_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.full)
    seed = config.getoption("shuffle")
    if seed is not None:
        _shuffle(items, seed)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_begin_late)


def _begin_late(item: pytest.Item) -> int:
    """The longest come first: begun last, one would keep one process busy while the others have ended."""
    if _module(item) in INDEPENDENT.union(ORDERED):
        return 0
    return 1 if item.get_closest_marker("full") else 2


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _shuffle(items: list[pytest.Item], seed: str) -> None:
    draw = random.Random(seed)
    place = {module: draw.random() for module in sorted({_module(item) for item in items})}
    place |= dict.fromkeys(ORDERED, draw.random())
    places = [(place[_module(item)], 0.0 if _module(item) in ORDERED else draw.random()) for item in items]
    items[:] = [item for _, item in sorted(zip(places, items, strict=True), key=lambda pair: pair[0])]


def make_encoder(architecture: str, directory: Path, weight_scale: float = 15, **options: Any) -> Path:
    """A random encoder of the architecture with a real tokenizer, saved as the hub's models are."""
    tokenizer = make_tokenizer(architecture)
    torch.manual_seed(7)
    settings = ENCODERS.get(architecture, _SMALL) | options
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), num_labels=len(LABELS), **settings)
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
    if architecture in _SENTENCE_PIECES:
        return _sentence_pieces(architecture)
    if architecture in _BYTE_PAIRS:
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
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in SENTENCES for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = sorted({letter for word in words for letter in word})
    # Not by `WordPieceTrainer`, which finds another vocabulary each time, so that each run had another encoder.
    pieces = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *sorted(words)])
    raw = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizer, splitter
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _sentence_pieces(architecture: str) -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes it: each word begins with a mark."""
    if architecture in ("xlm-roberta", "camembert"):
        first, last, padding, unknown = "<s>", "</s>", "<pad>", "<unk>"
        specials = [first, padding, last, unknown]
    else:
        first, last, padding, unknown = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
        specials = [padding, first, last, unknown]
    words = sorted({f"\u2581{word}" for text in SENTENCES for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    scores = [(special, 0.0) for special in specials]
    scores += [(word, -1.0) for word in words] + [(letter, -5.0) for letter in letters if letter not in words]
    raw = Tokenizer(models.Unigram(scores, unk_id=specials.index(unknown)))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.post_processor = processors.BertProcessing((last, specials.index(last)), (first, specials.index(first)))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, unk_token=unknown, pad_token=padding, cls_token=first, sep_token=last
    )


def make_bundle(encoder: Path, directory: Path, version: int = 1, temperature: float = 1.0) -> Path:
    """A complete version made of a saved encoder, as the export lays it out."""
    directory.mkdir(parents=True)
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    export_graph(model, temperature, directory / FLOAT_GRAPH)
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
        packed=not why_unpacked(model.config.to_dict()),
    ).save(directory)
    return directory


@pytest.fixture(scope="session")
def bert_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def bert_bundle(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(bert_encoder, tmp_path_factory.mktemp("bundle") / "1")
