"""What strangers try, and what each gets; `make strangers` prints the table.

A real `serve` that needs keys, with a small random model in the real Triton. Everything is sent as bytes, because a
client library would put right what is meant to be wrong.
"""

import contextlib
import gzip
import http.client
import json
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from gateway.http.request_body import MAX_BODY_BYTES
from storage.api_keys import Scope, add_key, revoke_key
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving

pytestmark = pytest.mark.full

ADMIN_KEY = "the-admin-key-of-this-test"
ROWS: list[tuple[str, str]] = []
TEXT = json.dumps({"text": "a"})


@dataclass(frozen=True)
class Answer:
    """What came back, before the connection was closed or fell silent."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def told(self) -> str:
        if not self.status:
            return "the connection is closed"
        try:
            problem = json.loads(self.body)
            kind = problem["type"].rpartition(":")[2] if problem["type"].startswith("urn:") else ""
            return f"{self.status} {kind}".strip()
        except (ValueError, KeyError, TypeError):
            return str(self.status)


class Stranger:
    """Somebody who can reach the gateway's port."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.keys = {"admin": ADMIN_KEY}
        with_database = served.database()
        for scope in (Scope.PREDICT, Scope.FEEDBACK, Scope.READ):
            self.keys[scope.value] = add_key(with_database, f"the-{scope.value}", [scope])
        self.keys["revoked"] = add_key(with_database, "gone", [Scope.ADMIN])
        revoke_key(with_database, "gone")
        with_database.close()
        wait_for(self._is_known, 60, "the keys to be known")

    def _is_known(self) -> bool:
        time.sleep(2)  # a key that is not known yet counts as a wrong one, and so many a minute get another answer
        return self.ask("GET /models", key="read").status == 200

    def ask(self, line: str, body: str | bytes = "", key: str = "", headers: str = "") -> Answer:
        """Send `METHOD /path`, with a key by its name."""
        data = body.encode() if isinstance(body, str) else body
        head = f"{line} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{headers}"
        if key:
            head += f"X-API-Key: {self.keys.get(key, key)}\r\n"
        if "content-type" not in headers.lower():
            head += "Content-Type: application/json\r\n"
        if "transfer-encoding" not in headers.lower() and "content-length" not in headers.lower():
            head += f"Content-Length: {len(data)}\r\n"
        return self.send(head.encode("latin-1") + b"\r\n" + data)

    def send(self, data: bytes) -> Answer:
        received = b""
        with socket.create_connection(("127.0.0.1", self.served.port), timeout=20) as connection:
            with contextlib.suppress(OSError):  # it may be refused before it is all sent
                connection.sendall(data)
            with contextlib.suppress(OSError):
                while part := connection.recv(65_536):
                    received += part
        head, _, content = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        if not lines[0].startswith("HTTP/1.1 "):
            return Answer(0, {}, "")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return Answer(int(lines[0].split()[1]), headers, content.decode(errors="replace"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, bert_bundle: Path) -> Iterator[Stranger]:
    served = make_served(
        tmp_path_factory.mktemp("strangers"),
        bert_bundle,
        versions=2,
        SENTIMENT_ACCESS="keys",
        SENTIMENT_ADMIN_KEY=ADMIN_KEY,
    )
    with serving(served):
        yield Stranger(served)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


LONG = "a" * (MAX_BODY_BYTES + 1)
GZIPPED = gzip.compress(json.dumps({"text": LONG}).encode())
CHUNKED = "Transfer-Encoding: chunked\r\n"
SMUGGLED = f"Content-Length: 4\r\n{CHUNKED}"
TWO_LENGTHS = "Content-Length: 13\r\nContent-Length: 3\r\n"
FOLDED = "X-A: 1\r\n continued\r\n"
INJECTED = "Idempotency-Key: a\rX-Evil: 1\r\n"
PICKLE = "Content-Type: application/x-python\r\n"
PLAIN = "Content-Type: text/plain\r\n"
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"
OWN_PAGE = "Sec-Fetch-Site: same-origin\r\n"
MANY = json.dumps({"texts": ["a"] * 10_000})
PREDICT = "POST /predict/live"
ATTEMPTS: list[tuple[str, str, str | bytes, str, str, str]] = [
    # what is tried, line, body, key, headers, what it gets
    ("predict without a key", PREDICT, TEXT, "", "", "401 key-needed"),
    ("predict with a wrong key", PREDICT, TEXT, "sentiment_wrong", "", "401 key-needed"),
    ("predict with a key that was revoked", PREDICT, TEXT, "revoked", "", "401 key-needed"),
    ("predict with two keys, one right", PREDICT, TEXT, "wrong", f"X-API-Key: {ADMIN_KEY}\r\n", "401 key-needed"),
    ("the key as a user's password (Basic)", PREDICT, TEXT, "", "Authorization: Basic YTpi\r\n", "401 key-needed"),
    ("the key in the query", f"{PREDICT}?api_key={ADMIN_KEY}", TEXT, "", "", "401 key-needed"),
    ("the key in a cookie", PREDICT, TEXT, "", f"Cookie: X-API-Key={ADMIN_KEY}\r\n", "401 key-needed"),
    ("a key of a hundred thousand letters", PREDICT, TEXT, "k" * 100_000, "", "401 key-needed"),
    ("a NUL in the key", PREDICT, TEXT, "", "X-API-Key: a\0b\r\n", "400 malformed-request"),
    ("feedback with a key for predictions", "POST /feedback", TEXT, "predict", "", "403 key-not-allowed"),
    ("predict with a key for feedback", PREDICT, TEXT, "feedback", "", "403 key-not-allowed"),
    ("promote without a key", "POST /models/1/promote", "", "", "", "401 key-needed"),
    ("promote with a key for predictions", "POST /models/1/promote", "", "predict", "", "403 key-not-allowed"),
    ("roll back with a key for reading", "POST /models/rollback", "", "read", "", "403 key-not-allowed"),
    ("retrain with a key for feedback", "POST /retrain", "", "feedback", "", "403 key-not-allowed"),
    ("cancel a job with a key for reading", "POST /jobs/1/cancel", "", "read", "", "403 key-not-allowed"),
    ("read what users wrote with a key for reading", "GET /feedback", "", "read", "", "403 key-not-allowed"),
    ("the same by what to label next", "GET /labelling", "", "read", "", "403 key-not-allowed"),
    ("the same by the console", "GET /console/label", "", "read", "", "401"),
    ("the same by what two versions differ on", "GET /models/1/differences", "", "read", "", "403 key-not-allowed"),
    ("release feedback with a key for it", "POST /feedback/sources/release", "", "feedback", "", "403 key-not-allowed"),
    ("withdraw feedback with a key for it", "POST /feedback/withdraw?id=1", "", "feedback", "", "403 key-not-allowed"),
    ("read the versions without a key", "GET /models", "", "", "", "401 key-needed"),
    ("read the events with a key for predictions", "GET /events", "", "predict", "", "403 key-not-allowed"),
    ("read the metrics without a key", "GET /metrics", "", "", "", "401 key-needed"),
    ("ask which paths there are", "GET /secret", "", "", "", "401 key-needed"),
    ("another method by a header", "GET /retrain", "", "admin", "X-HTTP-Method-Override: POST\r\n", "405"),
    ("another path by a header", "GET /health/live", "", "", "X-Original-URL: /models\r\n", "200"),
    ("to come from this machine by a header", PREDICT, TEXT, "", "X-Forwarded-For: 127.0.0.1\r\n", "401 key-needed"),
    ("a method that is none", "HACK /models", "", "admin", "", "400 malformed-request"),
    ("TRACE", "TRACE /predict/live", "", "admin", "", "405"),
    ("CONNECT to another server", "CONNECT example.com:443", "", "admin", "", "400 malformed-request"),
    ("another server's address as the path", "GET http://example.com/models", "", "", "", "401 key-needed"),
    ("a page of another site asks (CORS)", "OPTIONS /predict/live", "", "", "Origin: null\r\n", "401 key-needed"),
    ("a WebSocket", "GET /predict/live", "", "", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "401 key-needed"),
    ("up the tree in the version", "POST /models/../../etc/passwd/promote", "", "admin", "", "404"),
    ("the same, encoded", "POST /models/..%2f..%2fetc%2fpasswd/promote", "", "admin", "", "404"),
    ("the same, encoded twice", "POST /models/%252e%252e%252f1/promote", "", "admin", "", "404 not-found"),
    ("dots alone as the version", "POST /models/%2e%2e/promote", "", "admin", "", "404 not-found"),
    ("an absolute path as the version", "POST /models/%2Fetc/promote", "", "admin", "", "404"),
    ("a NUL in the version", "POST /models/1%00/promote", "", "admin", "", "404 not-found"),
    ("digits of another script as the version", "POST /models/%D9%A1/promote", "", "admin", "", "404 not-found"),
    ("a version of ten thousand digits", f"POST /models/{'9' * 10_000}/promote", "", "admin", "", "404 not-found"),
    ("SQL as the job", "GET /jobs/1%20OR%201=1", "", "read", "", "404 not-found"),
    ("SQL in a query", "GET /events?kind=a'%20OR%20'1'='1", "", "read", "", "422 invalid-fields"),
    ("a header of its own in the answer, by the path", "GET /jobs/1%0d%0aX-Evil:%201", "", "read", "", "404 not-found"),
    ("the same, by a key", "POST /feedback", TEXT, "feedback", INJECTED, "400 malformed-request"),
    ("a second request inside the first", PREDICT, chunked(TEXT.encode()), "", SMUGGLED, "400 malformed-request"),
    ("two lengths", PREDICT, TEXT, "predict", TWO_LENGTHS, "400 malformed-request"),
    ("a header that goes on in the next line", PREDICT, TEXT, "predict", FOLDED, "400 malformed-request"),
    ("a body that is too long", PREDICT, LONG, "predict", "", "413 too-large"),
    ("the same in pieces", PREDICT, chunked(*[b"[" * 65_536] * 65), "predict", CHUNKED, "413 too-large"),
    ("the same, compressed", PREDICT, GZIPPED, "predict", "Content-Encoding: gzip\r\n", "415 unsupported-media-type"),
    ("a body that is too long, without a key", PREDICT, LONG, "", "", "401 key-needed"),
    ("a head of a megabyte", PREDICT, TEXT, "predict", f"X-A: {'a' * 2**20}\r\n", "431 too-large-head"),
    ("a hundred thousand headers", PREDICT, TEXT, "predict", "X-A: 1\r\n" * 100_000, "431 too-large-head"),
    ("a path of a megabyte", f"GET /{'a' * 2**20}", "", "read", "", "431 too-large-head"),
    ("brackets, a hundred thousand deep", PREDICT, "[" * 100_000, "predict", "", "413 too-large"),
    ("a list of ten thousand texts", "POST /predict/batch", MANY, "predict", "", "413 too-large"),
    ("a Python pickle", PREDICT, b"\x80\x04.", "predict", PICKLE, "415 unsupported-media-type"),
    ("a form of another site", PREDICT, "text=a", "predict", PLAIN, "415 unsupported-media-type"),
    ("open the console without a key", "GET /", "", "", "", "401"),
    ("open it with a key, and no session", "GET /console/versions", "", "admin", "", "401"),
    ("promote by the console without a session", "POST /console/promote", "version=1", "", FORM + OWN_PAGE, "401"),
    ("the API's description, which is public", "GET /openapi.json", "", "", "", "200"),
    ("the health, which is public", "GET /health/ready", "", "wrong", "", "200"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "line", "body", "key", "headers", "gets"), ATTEMPTS, ids=[attempt[0] for attempt in ATTEMPTS]
)
def test_attempt(
    stranger: Stranger, what: str, line: str, body: str | bytes, key: str, headers: str, gets: str
) -> None:
    answer = stranger.ask(line, body, key, headers)
    ROWS.append((what, answer.told))
    assert answer.told == gets
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "x-evil" not in answer.headers
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_how_near_a_guess_is_does_not_show_in_the_time_it_takes(stranger: Stranger) -> None:
    """The medians are for the table; a test that went by time would fail by chance."""
    right = stranger.keys["predict"]
    guesses = {shared: right[:shared] + "~" * (len(right) - shared) for shared in (0, len(right) // 2, len(right) - 1)}
    taken: dict[int, list[float]] = {shared: [] for shared in guesses}
    connection = http.client.HTTPConnection("127.0.0.1", stranger.served.port, timeout=20)
    for _ in range(300):
        for shared, guess in guesses.items():
            started = time.perf_counter()
            connection.request("GET", "/models", headers={"X-API-Key": guess})
            response = connection.getresponse()
            response.read()
            taken[shared].append(1e6 * (time.perf_counter() - started))
            assert response.status in (401, 429)  # 429 once this address has sent too many wrong keys
    connection.close()
    medians = [f"{statistics.median(times):.0f}" for times in taken.values()]
    quartiles = statistics.quantiles(taken[0])
    ROWS.append(
        (
            f"guesses that share 0, {len(right) // 2} and {len(right) - 1} letters with a key, 300 times each",
            f"401, soon 429; medians {', '.join(medians)} µs, of quartiles {quartiles[0]:.0f} to {quartiles[2]:.0f} µs",
        )
    )


def test_nothing_but_the_gateway_can_be_reached_from_elsewhere(stranger: Stranger) -> None:
    process = stranger.served.process
    assert process is not None
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for running in everything
        for connection in running.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    port = stranger.served.port
    # The gateway, which listens where the setting says, and the gRPC port for programs; Triton has none.
    assert listening == {("127.0.0.1", port), ("127.0.0.1", port + 1)}
    ROWS.append(("Triton's ports from another machine", "nothing listens there: all are on 127.0.0.1"))


def test_after_all_that_it_serves_as_before_and_has_told_no_secret(
    stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stranger.ask(PREDICT, TEXT, "predict").status == 200
    assert stranger.served.repository.deployed() == 1
    files = [path for path in stranger.served.directory.rglob("*") if path.is_file() and "triton/venv" not in str(path)]
    for secret in stranger.keys.values():
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
    width = max(len(what) for what, _ in ROWS)
    with capsys.disabled():
        print(f"\n\n{'what strangers try':<{width}}  what they get")
        for what, gets in ROWS:
            print(f"{what:<{width}}  {gets}")
