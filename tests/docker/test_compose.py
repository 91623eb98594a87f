"""docker-compose.yml: services, privileges, ports, limits and secrets."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from app.settings import PREFIX, Settings
from tests.docker.dockerfile import ROOT, environment, stages

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EACH = pytest.mark.parametrize("name", SERVICES)
STARTED = {"seqserve", "prometheus", "grafana"}  # by `docker compose up`


def test_up_starts_the_server_prometheus_and_grafana() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == STARTED


@EACH
def test_every_service_is_unprivileged_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["deploy"]["resources"]["limits"]["memory"]


@EACH
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@EACH
def test_every_image_has_a_pinned_version(name: str) -> None:
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+(-alpine)?", SERVICES[name]["image"])


def test_built_images_have_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert built == {f"seqserve:{version}", f"seqserve-training:{version}"}


@pytest.mark.parametrize("name", sorted({*SERVICES} - {"seqserve", "training"}))
def test_every_other_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"  # the server's is in its image; training is a job


def test_no_environment_variable_holds_a_secret() -> None:
    given = [(name, key) for name, service in SERVICES.items() for key in service.get("environment", {})]
    assert given
    assert [(name, key) for name, key in given if re.search("PASSWORD|SECRET|TOKEN|KEY", key)] == [
        ("seqserve", "SEQSERVE_API_KEYS_FILE"),
        ("grafana", "GF_SECURITY_ADMIN_PASSWORD__FILE"),
    ]
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])


def test_every_variable_of_the_server_is_a_setting() -> None:
    given = {**SERVICES["seqserve"]["environment"], **environment(stages(ROOT / "docker" / "Dockerfile")[-1])}
    names = {name.removeprefix(PREFIX).lower() for name in given if name.startswith(PREFIX)}
    assert names
    assert names <= set(Settings.model_fields)


def test_the_stop_period_exceeds_the_grace_period() -> None:
    period = int(SERVICES["seqserve"]["stop_grace_period"].removesuffix("s"))
    assert period > Settings.model_fields["grace_s"].default


def test_the_memory_alert_is_below_the_memory_limit() -> None:
    rules = (ROOT / "docker" / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    (threshold,) = re.findall(r"seqserve_process_resident_memory_bytes > (\S+)", rules)
    limit = SERVICES["seqserve"]["deploy"]["resources"]["limits"]["memory"]
    assert 0.5 < float(threshold) / (int(limit.removesuffix("g")) * 2**30) < 0.9


def test_secrets_are_created_once_in_a_private_folder(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    first = _create(secrets)
    assert {*COMPOSE["secrets"], "predict_key"} == set(first)
    assert all(first.values())
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert [line.split()[:2] for line in first["api_keys"].splitlines()] == [
        ["prometheus", "admin"],
        ["first", "predict"],
    ]
    assert first["metrics_key"].strip() not in first["api_keys"]
    assert _create(secrets) == first


def test_secrets_are_where_compose_expects_them_and_ignored_by_git() -> None:
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"docker/secrets/{name}"}
    assert (ROOT / "docker" / "secrets" / ".gitignore").read_text().split() == ["*", "!.gitignore"]


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    subprocess.run([*_compose(), "--file", FILE, "--profile", "redis", "config", "--quiet"], check=True, cwd=tmp_path)


def _create(secrets: Path) -> dict[str, str]:
    variables = {"SEQSERVE": f"{sys.executable} -m app", "SECRETS": str(secrets)}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    script = ROOT / "docker" / "secrets.sh"
    subprocess.run(["sh", script], env=plain | variables, check=True, capture_output=True)
    return {file.name: file.read_text() for file in secrets.iterdir()}


def _compose() -> list[str]:
    """Return the command of Docker Compose; skip the test if it is not installed."""
    plugin = [shutil.which("docker") or "", "compose"]
    if plugin[0] and not subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode:
        return plugin
    if standalone := shutil.which("docker-compose"):
        return [standalone]
    pytest.skip("docker compose is not installed: Debian package docker-compose")
