"""deploy/kubernetes: rendered by kubectl's own kustomize, valid by Kubernetes' published schemas, and of one piece."""

import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError

from app import OWN_COMMANDS
from command_line import make_parser
from common.settings import ENV_PREFIX, Settings
from tests.e2e.conftest import PROJECT

KUBERNETES = PROJECT / "deploy" / "kubernetes"
VERSION = "1.37"
OVERLAYS = ("cpu", "gpu")
Manifest = dict[str, Any]


@lru_cache
def rendered(directory: str) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    kubectl = Path(sys.prefix) / "bin" / "kubectl"
    output = subprocess.run([kubectl, "kustomize", KUBERNETES / directory], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(output.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    return {item["metadata"]["name"]: item for item in rendered(f"overlays/{overlay}") if item["kind"] == kind}


def pods(overlay: str) -> dict[str, Manifest]:
    return {name: item["spec"]["template"] for name, item in of_kind(overlay, "Deployment").items()}


def containers(overlay: str) -> dict[str, Manifest]:
    return {
        f"{pod}/{container['name']}": container
        for pod, template in pods(overlay).items()
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    }


@pytest.mark.parametrize("directory", [*(f"overlays/{overlay}" for overlay in OVERLAYS), "monitoring"])
def test_each_manifest_is_valid_by_its_published_schema(directory: str) -> None:
    manifests = rendered(directory)
    assert manifests
    without_schema = set()
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except SchemaNotFoundError:
            without_schema.add(manifest["kind"])
    # Of the Prometheus Operator; its schema is in no package.
    assert without_schema == ({"ServiceMonitor"} if directory == "monitoring" else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_pod_keeps_to_the_restricted_profile_and_to_its_share(overlay: str) -> None:
    for template in pods(overlay).values():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # Variables for each service; those of one named sentiment-… would be taken for settings.
        assert spec["enableServiceLinks"] is False
    for name, container in containers(overlay).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_serves_has_probes_a_budget_and_a_spread(overlay: str) -> None:
    templates, budgets = pods(overlay), of_kind(overlay, "PodDisruptionBudget")
    for name in ("triton", "gateway"):
        (container,) = templates[name]["spec"]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        budget = budgets[name]["spec"]
        assert budget["selector"]["matchLabels"].items() <= templates[name]["metadata"]["labels"].items()
        spread = templates[name]["spec"]["topologySpreadConstraints"]
        assert {item["topologyKey"] for item in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert templates[name]["spec"]["terminationGracePeriodSeconds"] > pause + 30
        # The autoscaler's number is not overwritten by each apply.
        assert "replicas" not in of_kind(overlay, "Deployment")[name]["spec"]
    for name in ("triton", "gateway", "scheduler"):
        assert of_kind(overlay, "Deployment")[name]["spec"]["progressDeadlineSeconds"] == 3_600  # as the page waits
    scheduler = of_kind(overlay, "Deployment")["scheduler"]["spec"]
    assert (scheduler["replicas"], scheduler["strategy"]["type"]) == (1, "Recreate")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_and_settings_are_those_of_the_pipeline_and_secrets_are_references(overlay: str) -> None:
    (settings,) = of_kind(overlay, "ConfigMap").values()
    given = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in settings["data"].items()}
    assert given.keys() <= Settings.model_fields.keys()
    Settings.model_validate(given)
    assert not of_kind(overlay, "Secret")
    for name, container in containers(overlay).items():
        is_own = re.match(r"registry\.example/sentiment-(gateway|pipeline):", container["image"])
        if is_own and "command" not in container:
            assert make_parser(OWN_COMMANDS).parse_args(container["args"]).command, name
            assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        for variable in container.get("env", []):
            field = variable["name"].removeprefix(ENV_PREFIX).lower()
            assert field in Settings.model_fields or not variable["name"].startswith(ENV_PREFIX)
            if "PASSWORD" in variable["name"] or variable["name"].endswith(("_KEY", "_URL", "_URI")):
                assert "secretKeyRef" in variable["valueFrom"], variable


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_addresses_lead_to_pods_that_listen_there(overlay: str) -> None:
    (settings,) = of_kind(overlay, "ConfigMap").values()
    services, templates = of_kind(overlay, "Service"), pods(overlay)
    for service in services.values():
        (pod,) = [
            template
            for template in templates.values()
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        named = {
            port["name"]: port["containerPort"]
            for container in pod["spec"]["containers"]
            for port in container["ports"]
        }
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert target in named or target in named.values()
    # Headless, so that gateways see each replica.
    assert services["triton"]["spec"]["clusterIP"] == "None"
    assert settings["data"]["SENTIMENT_TRITON_URL"] == "dns:///triton:8001"
    assert settings["data"]["SENTIMENT_MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    claims = of_kind(overlay, "PersistentVolumeClaim")
    for template in templates.values():
        for volume in template["spec"]["volumes"]:
            if "secret" not in volume:
                assert "emptyDir" in volume or volume["persistentVolumeClaim"]["claimName"] in claims
    assert claims["models"]["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_triton_is_reached_by_gateways_and_the_scheduler_only(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy")
    assert policies["nobody"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    triton = policies["triton"]["spec"]
    assert triton["podSelector"]["matchLabels"].items() <= pods(overlay)["triton"]["metadata"]["labels"].items()
    grpc = [rule for rule in triton["ingress"] if {"port": 8001} in rule["ports"]]
    assert [rule["from"] for rule in grpc] == [
        [
            {
                "podSelector": {
                    "matchExpressions": [
                        {"key": "app.kubernetes.io/name", "operator": "In", "values": ["gateway", "scheduler"]}
                    ]
                }
            }
        ]
    ]
    assert triton["egress"] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_triton_and_those_who_control_it_have_the_same_key_and_run_as_the_same_user(overlay: str) -> None:
    templates = pods(overlay)
    reference = {"secretKeyRef": {"name": "sentiment", "key": "triton-key"}}
    for name in ("gateway", "scheduler"):
        (container,) = templates[name]["spec"]["containers"]
        given = {item["name"]: item.get("valueFrom") for item in container["env"]}
        assert given["SENTIMENT_TRITON_KEY"] == reference
    triton = templates["triton"]["spec"]
    (container,) = triton["containers"]
    assert "command" not in container, "the image's own command wants the key"
    (file,) = [item["value"] for item in container["env"] if item["name"] == "TRITON_KEY_FILE"]
    (secret,) = [item["secret"] for item in triton["volumes"] if "secret" in item]
    (mount,) = [item for item in container["volumeMounts"] if item["name"] == "key"]
    assert (secret["secretName"], secret["items"]) == ("sentiment", [{"key": "triton-key", "path": Path(file).name}])
    assert Path(mount["mountPath"]) == Path(file).parent
    # Tickets and published versions can be read and written by their user alone.
    assert {templates[name]["spec"]["securityContext"]["runAsUser"] for name in ("triton", "gateway", "scheduler")} == {
        10001
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scaling_goes_by_a_metric_that_is_recorded_and_served(overlay: str) -> None:
    scaler = of_kind(overlay, "HorizontalPodAutoscaler")["triton"]["spec"]
    (external,) = [metric["external"] for metric in scaler["metrics"] if metric["type"] == "External"]
    adapter = yaml.safe_load((KUBERNETES / "monitoring" / "prometheus-adapter-values.yaml").read_text())
    (served,) = adapter["rules"]["external"]
    assert served["name"]["as"] == external["metric"]["name"]
    rules = yaml.safe_load((PROJECT / "deploy" / "prometheus" / "rules.yml").read_text())
    recorded = {rule.get("record") for group in rules["groups"] for rule in group["rules"]}
    assert served["seriesQuery"] in recorded
    for name, item in of_kind(overlay, "HorizontalPodAutoscaler").items():
        assert item["spec"]["scaleTargetRef"]["name"] == name
        assert item["spec"]["minReplicas"] >= 2


def test_overlays_differ_in_what_triton_runs_on() -> None:
    cpu, gpu = (containers(overlay)["triton/triton"] for overlay in OVERLAYS)
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    # Whole cores of its own, of which the engine runs one stream each.
    assert cpu["resources"]["requests"]["cpu"] == cpu["resources"]["limits"]["cpu"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["image"].startswith("registry.example/sentiment-triton-gpu:")
    assert pods("gpu")["triton"]["spec"]["initContainers"][0]["image"] == gpu["image"]


def test_what_monitors_finds_the_services() -> None:
    services = of_kind("cpu", "Service")
    monitors = [item for item in rendered("monitoring") if item["kind"] == "ServiceMonitor"]
    assert {monitor["metadata"]["name"] for monitor in monitors} == {"gateway", "triton"}
    for monitor in monitors:
        service = services[monitor["metadata"]["name"]]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        # The rules and the dashboard know them by these names of their jobs.
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == monitor["metadata"]["name"]
        # The gateway's metrics need a key, which the page creates.
        needs_key = monitor["metadata"]["name"] == "gateway"
        credentials = {"credentials": {"name": "metrics", "key": "key"}} if needs_key else None
        assert endpoint.get("authorization") == credentials
