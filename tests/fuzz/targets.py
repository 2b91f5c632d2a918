"""What parses bytes that others wrote, each as a function of bytes that raises only where something is wrong."""

import asyncio
import gzip
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import SecretStr
from tokenizers import Tokenizer
from uvicorn import Config
from uvicorn.server import ServerState

from common.errors import PipelineError
from common.home import HOME
from common.home import env_file as env_file_path
from common.settings import Settings, load_settings
from gateway.console.uploaded_table import read_table
from gateway.http.http_protocol import BoundedHttpProtocol
from gateway.http.problems import ProblemError
from gateway.http.validation import batch_texts, labelled_texts, live_text
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from serving.model_repo.bundle import DESCRIPTION, TOKENIZER, Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.variants import FLOAT_GRAPH
from storage.lazy_database import Storage
from tables.csv_writing import csv_header, csv_lines
from tests.conftest import LABELS, make_tokenizer
from trainer.dataset import read_labelled_texts

Target = Callable[[bytes], None]

ADMIN_KEY = "the-admin-key"

_PROOF = (
    b'{"runtime": "onnxruntime", "precision": "float32", "arithmetic": "avx2", "texts": 1, "mixes": 1, '
    b'"label_agreement": 1.0, "confident_agreement": 1.0, "largest_difference": 0.0, "largest_spread": 0.0, '
    b'"accuracy": 1.0, "macro_f1": 1.0, "tokens_per_s": 1.0}'
)
BUNDLE = (
    b'{"version": 1, "labels": ["Negative", "Positive"], "max_length": 512, "padding_token": 0, "base_model": "b", '
    b'"data_fingerprint": "", "mlflow_run": "", "metrics": {"accuracy": 0.9}, "proofs": [' + _PROOF + b"]}"
)


@cache
def _directory() -> Path:
    """A directory of this process, with what the targets need beside what is fuzzed."""
    directory = Path(tempfile.mkdtemp(prefix="sentiment-fuzz-"))
    version = directory / "triton_repo" / "sentiment" / "1"
    version.mkdir(parents=True)
    for name in (FLOAT_GRAPH, TOKENIZER):
        (version / name).touch()
    (version / DESCRIPTION).write_bytes(BUNDLE)
    return directory


def bodies(data: bytes) -> None:
    """The bodies of all requests that have one."""
    for parse in (live_text, batch_texts, labelled_texts):
        try:
            parsed = parse(data)
        except ProblemError as problem:
            bytes(problem.response().body)
            continue
        texts = [parsed] if isinstance(parsed, str) else list(parsed)
        assert texts
        for text in texts:
            text.encode()


def csv_file(data: bytes) -> None:
    """A file of feedback, or of data to learn from."""
    path = _directory() / "data.csv"
    path.write_bytes(data)
    with suppress(PipelineError):
        read_labelled_texts(path, LABELS, Settings(state_dir=_directory() / "state"))


def upload(data: bytes) -> None:
    """A file of texts that is sent to the console."""
    try:
        table = read_table(data)
    except ProblemError as problem:
        bytes(problem.response().body)
        return
    "".join([csv_header(table.columns), *csv_lines(table.rows)]).encode()


def bundle(data: bytes) -> None:
    """A version's `bundle.json`."""
    path = _directory() / "bundle"
    path.mkdir(exist_ok=True)
    for name in (FLOAT_GRAPH, TOKENIZER):
        (path / name).touch()
    (path / DESCRIPTION).write_bytes(data)
    with suppress(PipelineError):
        Bundle.load(path)


def model_configuration(data: bytes) -> None:
    """Triton's `config.pbtxt`, which says what is deployed."""
    repository = ModelRepository(_directory() / "triton_repo")
    (repository.model / "config.pbtxt").write_bytes(data)
    with suppress(PipelineError):
        repository.deployed()


def env_file(data: bytes) -> None:
    """`.env`."""
    with mock.patch.dict(os.environ, {HOME: str(_directory())}):
        env_file_path().write_bytes(data)
        try:
            with suppress(PipelineError):
                load_settings()
        finally:
            env_file_path().unlink()


def texts(data: bytes) -> None:
    """Texts, as the model's tokenizer gets them."""
    text = data.decode(errors="ignore")
    for architecture in ("bert", "roberta"):
        tokenizer = _tokenizer(architecture)
        (encoding,) = tokenizer.encode_batch_fast([text])
        assert len(encoding.ids) <= 128


def requests(data: bytes) -> None:
    """Whatever comes through a connection: the whole gateway, before a Triton that is down."""
    loop, config, state = _gateway()
    transport = _Transport()

    async def connection() -> None:
        protocol = BoundedHttpProtocol(config, state, {})
        protocol.connection_made(transport)
        for start in range(0, len(data), 1_000):
            protocol.data_received(data[start : start + 1_000])
        while state.tasks and not transport.is_closing():
            await asyncio.wait(list(state.tasks), timeout=0.01)
            if protocol.cycle is not None and not protocol.cycle.response_complete:
                protocol.connection_lost(None)
                await asyncio.gather(*state.tasks, return_exceptions=True)
                return
        protocol.connection_lost(None)

    loop.run_until_complete(connection())
    answers = transport.written.getvalue()
    assert not answers or answers.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500 " not in answers, answers


class _Transport(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = io.BytesIO()
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing:
            self.written.write(data)

    def close(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("sockname", "peername") else default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@cache
def _tokenizer(architecture: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(make_tokenizer(architecture).backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return tokenizer


@cache
def _gateway() -> tuple[asyncio.AbstractEventLoop, Config, ServerState]:
    directory = _directory()
    settings = Settings(
        triton_url="127.0.0.1:1",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
    )
    app = create_app(settings, Storage(settings), CallStatistics(), UnderWay())
    config = Config(app, http=BoundedHttpProtocol, ws="none", lifespan="off", log_config=None, loop="asyncio")
    config.load()
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    app.state.lifespan = lifespan  # it would end with the last reference to it
    return loop, config, ServerState()


def _request(line: str, body: str = "", headers: str = "") -> bytes:
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-API-Key: {ADMIN_KEY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{headers}\r\n{body}".encode()


CONFIGURATION = b'name: "sentiment"\nversion_policy: { specific: { versions: [ 1 ] } }\n'

TARGETS: dict[str, tuple[Target, list[bytes]]] = {
    "bodies": (
        bodies,
        [
            b'{"text": "good"}',
            b'{"texts": ["good", "bad \\ud83d\\ude42"]}',
            b'{"feedback": [{"text": "good", "label": "Positive"}]}',
            b'{"text": "a", "te\\u0078t": "\\ud800\\u0000\\u200b"}',
            b'{"text": [{"a": NaN, "b": 1e999}], "texts": 12345678901234567890}',
        ],
    ),
    "csv": (
        csv_file,
        [b'text,label\n"good ""film""\n, really",Positive\nbad,Negative\n', b"\xef\xbb\xbfText;Label\r\na;b\r\n"],
    ),
    "upload": (
        upload,
        [
            b'id;text\n1;"good ""film"""\n2\n',
            b'{"text": "good", "a": [1, {}], "b": 1.5}\n{"text": null}\n',
            b"\xff\xfet\x00e\x00x\x00t\x00\n\x00a\x00\r\x00\n\x00",
            gzip.compress(b"text\ncaf\xe9\n"),
        ],
    ),
    "bundle": (bundle, [BUNDLE, b"[" * 100_000, b'{"labels": [], "proofs": {}}']),
    "configuration": (
        model_configuration,
        [CONFIGURATION, CONFIGURATION.replace(b"1", b"9" * 5_000), CONFIGURATION.replace(b"1", "١".encode())],
    ),
    "env": (
        env_file,
        [b"SENTIMENT_PORT=9000\nSENTIMENT_SEED='5'\n", b"SENTIMENT_MODEL_DIR=a\0b\nexport SENTIMENT_PROT=${PATH}\n"],
    ),
    "texts": (
        texts,
        ["I love this product! 🙂".encode(), "Naïve é\u0301 你好 \u202eabc\u202c \u200d".encode(), b"a" * 500],
    ),
    "requests": (
        requests,
        [
            _request("POST /predict/live", '{"text": "good"}'),
            _request("POST /predict/batch", '{"texts": ["good"]}', "Connection: close\r\n"),
            _request("POST /feedback", '{"text": "good", "label": "Positive"}', "Idempotency-Key: a\r\n"),
            _request("GET /events?limit=1&before=2&kind=promoted") + _request("GET /models"),
            _request("GET /jobs/1%00") + _request("OPTIONS /predict/live"),
            _request("GET /health/live", "", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            b"POST /predict/live HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
        ],
    ),
}
"""The function of each target, and bytes to begin with; what once made one fail stays among them."""
