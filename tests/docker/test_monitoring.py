"""Prometheus rules and the Grafana dashboard against the metrics of a real server, and promtool."""

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

from tests.docker.dockerfile import ROOT
from tests.e2e.conftest import serving

PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "seqserve.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
BUILTIN: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate"}}
TARGET_LABELS = {"job", "instance"}  # added by Prometheus
METRIC = re.compile(r"(?P<name>\b(?:[a-z_]+:)?(?:seqserve_\w+|up|ALERTS)\b(?::\w+)?)(?:\{(?P<selector>[^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$route": ".*", "$model": ".*"}

Labels: TypeAlias = Mapping[str, set[str]]  # by metric


def queries() -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression with its location."""
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
    """The labels of every metric of a server after answers, a timeout and a 404."""
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
    """Exported metrics, recording rules and metrics of Prometheus itself."""
    recorded = {rule["record"]: _grouped(rule["expr"]) - {"le"} for rule in RULES if "record" in rule}
    return {**exported, **recorded, **BUILTIN}


@pytest.mark.parametrize("location", QUERIES)
def test_every_queried_metric_and_label_is_exported(location: str, known: Labels) -> None:
    expression = QUERIES[location]
    metrics = list(METRIC.finditer(expression))
    assert metrics
    for metric in metrics:
        assert metric["name"] in known
        selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", metric["selector"] or ""))
        assert selected <= known[metric["name"]] | TARGET_LABELS
    assert _grouped(expression) <= TARGET_LABELS.union(*(known[metric["name"]] for metric in metrics))


def test_every_exported_metric_is_on_the_dashboard_or_in_a_rule(exported: Labels) -> None:
    queried = {metric["name"] for expression in QUERIES.values() for metric in METRIC.finditer(expression)}
    queried |= {name.removesuffix(end) for name in queried for end in ("_bucket", "_sum", "_count")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if not name.endswith("_created")}
    unused = {name for name in families - queried if not name.startswith("seqserve_process_")}
    assert not unused


def test_metric_names_follow_the_prometheus_conventions(exported: Labels) -> None:
    for name in exported:
        assert re.fullmatch(r"seqserve_[a-z_]+", name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", name)


@pytest.mark.parametrize("alert", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_a_summary_and_a_description(alert: Mapping[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
    assert alert["annotations"]["description"].endswith(".")
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
    assert used <= _grouped(alert["expr"]) | {"model", "version", "route"}


def test_the_dashboard_is_provisioned_with_its_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/seqserve.yml").read_text())["providers"]
    assert set(re.findall(r'"uid": "(\w+)"', json.dumps(DASHBOARD))) == {source["uid"], "seqserve"}
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]


def test_panels_have_a_unit_a_title_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def test_promtool_accepts_the_configuration() -> None:
    _promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    _promtool("check", "rules", PROMETHEUS / "rules.yml")
    _promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"query:{index}", "expr": _filled(text)} for index, text in enumerate(QUERIES.values())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    _promtool("check", "rules", file)


def _grouped(expression: str) -> set[str]:
    return {label.strip() for labels in GROUPED.findall(expression) for label in labels.split(",")}


def _filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def _promtool(*arguments: str | Path) -> None:
    if not (tool := shutil.which("promtool")):
        pytest.skip("promtool is not installed: Debian package prometheus")
    result = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
