import gzip
import hashlib
import re
from pathlib import Path

from gateway.console.assets import assets
from tests.gateway.console.conftest import Page
from tests.gateway.routes.test_feedback import Gateway

STATIC = Path(__file__).resolve().parents[3] / "gateway" / "console" / "static"
MOST_BYTES = 300_000


def files_of(page: Page) -> list[str]:
    named = [link["href"] for link in page.all("link")] + [item["src"] for item in page.all("script") if "src" in item]
    return [name for name in named if name is not None]


def test_a_page_loads_nothing_from_elsewhere_and_little_from_here(console: Gateway) -> None:
    for path in ("/", "/console/health", "/console/events", "/console/sign-in", "/docs"):
        response = console.http.get(path)
        size = len(response.content)
        for file in files_of(Page(response)):
            assert file.startswith("/console/static/")
            answer = console.http.get(file, headers={"Accept-Encoding": "identity"})
            assert answer.status_code == 200
            size += len(answer.content)
        assert size < MOST_BYTES or path == "/docs", path
        assert "https://" not in response.text
        assert "http://" not in response.text


def test_files_are_kept_by_browsers_until_they_change(console: Gateway) -> None:
    for name, asset in assets().items():
        answer = console.http.get(asset.path, headers={"Accept-Encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == gzip.decompress(asset.compressed) == (STATIC / name).read_bytes()
        assert hashlib.sha256(answer.content).hexdigest()[:12] in asset.path


def test_pages_may_run_their_own_files_alone(console: Gateway) -> None:
    response = console.http.get("/")
    (policy,) = response.headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers.get_list("cache-control") == ["no-store"]


def test_libraries_are_the_ones_that_are_named() -> None:
    notice = (STATIC / "vendor" / "NOTICE.md").read_text()
    named = dict(re.findall(r"^\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|$", notice, flags=re.M))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (STATIC / "vendor").glob("*.*s")}
    assert named == files
    for licence in ("Zero-Clause BSD", "The MIT License", "Apache License"):
        assert licence in notice
