"""deploy/kubernetes as kustomize builds it: Kubernetes's own schemas, privileges, and names that must agree.

The resources of Gateway API, Envoy Gateway and the Prometheus Operator have no schema here; their references are
checked.
"""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]

from app.api.operations.routes import ROUTES
from app.settings import PREFIX, Settings

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "kubernetes"
OLDEST: Final = "1.32"  # version of Kubernetes that the manifests are for, and newer ones
CORE: Final = {"ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
CUSTOM: Final = {"Gateway", "HTTPRoute", "BackendTrafficPolicy", "ServiceMonitor"}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """The resources by kind."""
    built = subprocess.run(["kubectl", "kustomize", FOLDER], check=True, capture_output=True, encoding="utf-8").stdout
    found = list(yaml.safe_load_all(built))
    assert len({resource["kind"] for resource in found}) == len(found)
    return {resource["kind"]: resource for resource in found}


@pytest.fixture
def pod(resources: dict[str, Any]) -> dict[str, Any]:
    specification: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return specification


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def test_every_file_is_built(resources: dict[str, Any]) -> None:
    assert {*resources} == CORE | CUSTOM
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert {*listed, "kustomization.yaml"} == {file.name for file in FOLDER.iterdir()}


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", sorted(CORE))
def test_a_resource_matches_the_schema_of_kubernetes(resources: dict[str, Any], kind: str, version: str) -> None:
    kubernetes_validate.validate(resources[kind], version, strict=True)


def test_a_misspelled_field_is_rejected(resources: dict[str, Any]) -> None:
    wrong = resources["Service"] | {"spec": {"port": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_the_pod_is_unprivileged_and_its_file_system_read_only(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 65534  # the image's
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def test_no_service_sets_a_variable_of_the_server(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


def test_the_settings_are_those_of_the_server(resources: dict[str, Any], container: dict[str, Any]) -> None:
    settings = resources["ConfigMap"]["data"]
    assert {name.removeprefix(PREFIX).lower() for name in settings} <= {*Settings.model_fields}
    assert container["envFrom"] == [{"configMapRef": {"name": resources["ConfigMap"]["metadata"]["name"]}}]
    (keys,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert Path(settings["SEQSERVE_API_KEYS_FILE"]).parent == Path(keys["mountPath"])


def test_the_pod_outlives_its_grace_period(resources: dict[str, Any], pod: dict[str, Any]) -> None:
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + int(resources["ConfigMap"]["data"]["SEQSERVE_GRACE_S"])


def test_the_route_outlasts_the_request_timeout(resources: dict[str, Any]) -> None:
    (rule,) = resources["HTTPRoute"]["spec"]["rules"]
    assert float(rule["timeouts"]["request"].removesuffix("s")) > Settings.model_fields["request_timeout_s"].default


def test_the_gateway_closes_idle_connections_before_the_server_does(resources: dict[str, Any]) -> None:
    idle = resources["BackendTrafficPolicy"]["spec"]["timeout"]["http"]["connectionIdleTimeout"]  # 1 h by default
    assert float(idle.removesuffix("s")) < Settings.model_fields["keep_alive_s"].default


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_requests_a_public_route(container: dict[str, Any], probe: str) -> None:
    public = {route.path for route in ROUTES if getattr(route, "key_scope", "admin") is None}  # type: ignore[attr-defined]
    assert container[probe]["httpGet"]["path"] in public
    assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}


def test_selectors_match_the_pods(resources: dict[str, Any]) -> None:
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels
    assert resources["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        assert resources[kind]["spec"]["selector"] == {"matchLabels": labels}
    assert resources["Service"]["metadata"]["labels"] == labels  # the monitor selects the Service by them


def test_references_lead_to_resources_of_that_name(resources: dict[str, Any]) -> None:
    route = resources["HTTPRoute"]["spec"]
    ports = {port["port"]: port for port in resources["Service"]["spec"]["ports"]}
    references = [
        resources["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"],
        *({"kind": "Gateway", **parent} for parent in route["parentRefs"]),
        *({"kind": "Service", **backend} for rule in route["rules"] for backend in rule["backendRefs"]),
        *resources["BackendTrafficPolicy"]["spec"]["targetRefs"],
    ]
    for reference in references:
        assert resources[reference["kind"]]["metadata"]["name"] == reference["name"]
        assert reference.get("port") in {None, *ports}
    (endpoint,) = resources["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in ports.values()}


def test_writers_are_kept_by_their_session_and_key(resources: dict[str, Any]) -> None:
    balancer = resources["BackendTrafficPolicy"]["spec"]["loadBalancer"]
    headers = [header["name"] for header in balancer["consistentHash"]["headers"]]
    assert headers == ["X-Session-Id", "Authorization", "X-API-Key"]


def test_the_image_has_the_version_of_the_project(container: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert container["image"] == f"seqserve:{version}"
