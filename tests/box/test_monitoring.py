"""Prometheus and Grafana ask for figures that a real server has, and Prometheus's own tool takes their files."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from tests.box.dockerfile import ROOT
from tests.e2e.conftest import serving

PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "seqserve.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
OF_PROMETHEUS: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate"}}
GIVEN_TO_ALL = {"job", "instance"}  # by Prometheus
METRIC = re.compile(r"(?P<name>\b(?:[a-z_]+:)?(?:seqserve_\w+|up|ALERTS)\b(?::\w+)?)(?:\{(?P<selector>[^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$route": ".*", "$model": ".*"}

Labels: TypeAlias = Mapping[str, set[str]]  # of each metric


def queries() -> Iterator[tuple[str, str]]:
    """Where an expression stands, and the expression."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']} {target['refId']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        yield f"variable {variable['name']}", f"sum by ({label}) ({metric})"
    for annotation in DASHBOARD["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


QUERIES = dict(queries())


@pytest.fixture(scope="module")
def exported(tiny_store: Path) -> Labels:
    """The labels of every metric of a server that has answered, refused and been asked what is not there."""
    with serving(tiny_store) as (client, _):
        assert client.post("/next-word", json={"text": "the company said"}).is_success
        assert client.post("/perplexity", json={"text": "the company said " * 3000}).is_success
        late = client.post("/next-word", json={"text": "the"}, headers={"X-Request-Timeout": "0.000001"})
        assert late.status_code == httpx.codes.GATEWAY_TIMEOUT
        assert client.get("/nowhere").status_code == httpx.codes.NOT_FOUND
        text = client.get("/metrics").raise_for_status().text
    labels = defaultdict[str, set[str]](set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return labels


@pytest.fixture(scope="module")
def known(exported: Labels) -> Labels:
    """These, what is recorded of them, and what Prometheus has of itself."""
    recorded = {rule["record"]: _grouped(rule["expr"]) - {"le"} for rule in RULES if "record" in rule}
    return {**exported, **recorded, **OF_PROMETHEUS}


@pytest.mark.parametrize("where", QUERIES)
def test_what_is_asked_for_is_exported(where: str, known: Labels) -> None:
    expression = QUERIES[where]
    metrics = list(METRIC.finditer(expression))
    assert metrics
    for metric in metrics:
        assert metric["name"] in known
        selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", metric["selector"] or ""))
        assert selected <= known[metric["name"]] | GIVEN_TO_ALL
    assert _grouped(expression) <= GIVEN_TO_ALL.union(*(known[metric["name"]] for metric in metrics))


def test_every_metric_of_the_service_is_shown_or_watched(exported: Labels) -> None:
    asked = {metric["name"] for expression in QUERIES.values() for metric in METRIC.finditer(expression)}
    asked |= {name.removesuffix(end) for name in asked for end in ("_bucket", "_sum", "_count")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if not name.endswith("_created")}
    left = {name for name in families - asked if not name.startswith("seqserve_process_")}
    assert not left


def test_metrics_are_named_as_prometheus_advises(exported: Labels) -> None:
    for name in exported:
        assert re.fullmatch(r"seqserve_[a-z_]+", name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", name)


@pytest.mark.parametrize("alert", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(alert: Mapping[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["description"].endswith(".")
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
    assert used <= _grouped(alert["expr"]) | {"model", "version", "route"}


def test_the_dashboard_is_provisioned_with_its_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/seqserve.yml").read_text())["providers"]
    assert set(re.findall(r'"uid": "(\w+)"', json.dumps(DASHBOARD))) == {source["uid"], "seqserve"}
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]


def test_panels_have_a_unit_a_place_of_their_own_and_a_title() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def test_prometheus_takes_its_configuration() -> None:
    _promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_prometheus_takes_its_rules_and_they_fire_when_they_should_and_only_then() -> None:
    _promtool("check", "rules", PROMETHEUS / "rules.yml")
    _promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [{"record": f"asked:{place}", "expr": _filled(text)} for place, text in enumerate(QUERIES.values())]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    _promtool("check", "rules", file)


def _grouped(expression: str) -> set[str]:
    return {label.strip() for labels in GROUPED.findall(expression) for label in labels.split(",")}


def _filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def _promtool(*arguments: str | Path) -> None:
    if not (tool := shutil.which("promtool")):
        pytest.skip("no promtool here: Debian's package prometheus brings it")
    told = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
