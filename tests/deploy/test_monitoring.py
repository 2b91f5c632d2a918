"""Prometheus' rules and Grafana's dashboard: they ask for what a running pipeline tells, and alarm when they should."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from serving.client import sockets
from serving.host import triton
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, serving
from tests.lifecycle.learning import write_data

pytestmark = pytest.mark.full

DEPLOY = PROJECT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "sentiment.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ASKED = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
    for panel in PANELS
    for target in panel["targets"]
}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
EXPRESSIONS = {
    **ASKED,
    **RECORDED,
    **{rule["alert"]: rule["expr"] for rule in RULES if "alert" in rule},
    "annotations": DASHBOARD["annotations"]["list"][0]["expr"],
}
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names.

    Raises:
        ValueError: it is no PromQL.
    """
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, bert_bundle: Path) -> Iterator[Served]:
    """A pipeline that has answered, was told feedback, and was checked."""
    directory = tmp_path_factory.mktemp("monitored")
    write_data(directory)
    with serving(make_served(directory, bert_bundle, versions=1)) as served:
        for text in ("fine", "fine", "good"):
            assert served.ask("POST", "/predict/live", json={"text": text}).is_success
        assert served.ask("POST", "/feedback", json={"text": "fine", "label": "Positive"}).is_success
        assert served.check()["state"] == "succeeded"
        yield served


def test_each_expression_asks_for_what_a_running_pipeline_tells(asked: Served) -> None:
    def told() -> set[str]:
        return set(re.findall(r"^(\w+)(?:\{| )", asked.ask("GET", "/metrics").text, flags=re.MULTILINE))

    # The engine tells what it does among Triton's metrics once a second or so.
    wait_for(lambda: "sentiment_engine_busy_cores" in told(), 30, "the engine's metrics")
    known = told() | RECORDED.keys() | {"up"}
    for name, expression in EXPRESSIONS.items():
        assert metrics_of(expression) <= known, name
    assert metrics_of("rate(http_requests_total[5m]) / x") == {"http_requests_total", "x"}


def test_panels_ask_the_provisioned_datasource_and_do_not_overlap() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (datasource,) = provisioned["datasources"]
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells
    for panel in PANELS:
        for item in (panel, *panel["targets"]):
            assert item["datasource"] == {"type": datasource["type"], "uid": datasource["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus")
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    for arguments in (
        ["check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml")],
        ["test", "rules", str(Path(__file__).with_name("rules_test.yml"))],
    ):
        ended = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    tested = (Path(__file__).with_name("rules_test.yml")).read_text()
    for rule in RULES:
        assert "alert" not in rule or f'alertname="{rule["alert"]}"' in tested, rule


class _MetricsPort(ThreadingHTTPServer):
    """Tells at a port what is told at a socket."""

    def __init__(self, socket: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with httpx.Client(transport=httpx.HTTPTransport(uds=sockets.private_path(socket))) as client:
                    answer = client.get("http://triton/metrics")
                self.send_response(answer.status_code)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def prometheus(asked: Served, tmp_path: Path) -> Iterator[str]:
    """A Prometheus with our rules that scrapes the pipeline; gives its address."""
    if PROMETHEUS is None:
        pytest.skip("needs prometheus, of Debian's package of that name")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    # Prometheus cannot ask a socket; the image's Triton tells at a port what the bundled one tells there.
    metrics = _MetricsPort(triton.metrics_socket(asked.settings))
    ports = {"gateway": asked.port, "triton": metrics.server_port}
    for job in config["scrape_configs"]:
        assert [item["port"] for item in job.pop("dns_sd_configs")] == [8000 if job["job_name"] == "gateway" else 8002]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
        if "authorization" in job:
            (tmp_path / "key").write_text(ADMIN_KEY)
            job["authorization"]["credentials_file"] = str(tmp_path / "key")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports()}"
    with (tmp_path / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=output,
        )
    yield f"http://{address}"
    process.terminate()
    process.wait(30)
    metrics.shutdown()
    metrics.server_close()


def test_a_real_prometheus_answers_each_question_of_the_dashboard(asked: Served, prometheus: str) -> None:
    def answer(expression: str) -> list[Any]:
        found = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression})
        assert found.is_success, f"{expression}: {found.text}"
        return list(found.json()["data"]["result"])

    def all_recorded() -> bool:
        served = asked.ask("POST", "/predict/live", json={"text": f"good {time.monotonic_ns()}"})
        assert served.is_success
        try:
            is_ready = httpx.get(f"{prometheus}/-/ready").is_success
            return is_ready and all(answer(name) for name in RECORDED)
        except httpx.TransportError:
            return False

    wait_for(all_recorded, 60, "Prometheus to have recorded everything")
    for name, expression in ASKED.items():
        assert answer(expression), name
    firing = {alert["labels"]["alertname"] for alert in answer('ALERTS{alertstate="firing"}')}
    assert not firing, firing
