from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from pydantic import TypeAdapter

from serving.metrics import CrewMetrics, EngineMetrics, Metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
_SERIES = re.compile(r"\b(windfire_\w+)(?:\{([^}]*)\})?")
_OTHERS = {"instance", "job", "le", "alertname", "alertstate"}  # labels of Prometheus itself


def _known() -> dict[str, set[str]]:
    """Every series of /metrics with its labels."""
    metrics = [value for part in (Metrics(), EngineMetrics(), CrewMetrics()) for value in vars(part).values()]
    known = {}
    for metric in (one for one in metrics if isinstance(one, MetricWrapperBase)):
        for suffix in _SUFFIXES[str(metric._type)]:
            known[metric._name + suffix] = set(metric._labelnames)
    return known


@pytest.fixture(scope="module")
def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/windfire.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def expressions(rules: dict[str, dict[str, Any]], dashboard: dict[str, Any]) -> list[str]:
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [*(rule["expr"] for rule in rules.values()), *drawn]


def test_every_series_exists_with_its_labels(expressions: list[str]) -> None:
    known = _known()
    used = [(series, labels) for text in expressions for series, labels in _SERIES.findall(text)]
    assert len(used) > 40
    assert {series for series, _ in used} - set(known) == set()
    for series, labels in used:
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) - _OTHERS <= known[series], series


def test_what_is_grouped_by_is_a_label_of_a_series_beside_it(expressions: list[str]) -> None:
    known = _known()
    for text in expressions:
        labels = set().union(*(known[series] for series, _ in _SERIES.findall(text)))
        grouped = {
            name.strip() for names in re.findall(r"\b(?:by|without) \(([^)]*)\)", text) for name in names.split(",")
        }
        assert grouped - _OTHERS <= labels, text


def test_the_alerts_that_must_be_there(rules: dict[str, dict[str, Any]]) -> None:
    wanted = {
        "IneligibleItems": "windfire_ineligible_items_total",
        "LatencyOverDeadline": "windfire_request_seconds_bucket",
        "RequestsRefused": 'status="503"',
        "EngineGone": "windfire_engine_connected",
        "BundleRefused": 'result="refused"',
        "HistoriesStale": "windfire_history_failures_total",
        "HistoriesBehind": "windfire_histories_behind",
        "FeaturesStale": 'status="STALE"',
        "FeaturesUnread": "windfire_feature_reads_total",
    }
    assert {name: part for name, part in wanted.items() if part not in rules[name]["expr"]} == {}
    for rule in rules.values():
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in {"page", "warn"}


def test_the_latency_that_alarms_is_the_deadline_and_a_bucket(
    rules: dict[str, dict[str, Any]], dashboard: dict[str, Any], services: dict[str, Any]
) -> None:
    value = services["frontend"]["environment"]["WINDFIRE_DEADLINE"]
    deadline = TypeAdapter(timedelta).validate_python(value).total_seconds()
    assert float(rules["LatencyOverDeadline"]["expr"].rpartition(">")[2]) == deadline
    metrics = Metrics()
    metrics.observe("/v1/recommend", "nezha", 200, 0.001)
    bounds = re.findall(r'request_seconds_bucket\{le="([^"]+)"', metrics.render().decode())
    assert str(deadline) in bounds  # else the quantile and the share would be guessed inside a bucket
    shares = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", ()) if 'le="' in t["expr"]]
    assert [re.findall(r'le="([^"]+)"', share) for share in shares] == [[str(deadline)]]


def test_prometheus_asks_every_replica(services: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (found,) = next(job for job in config["scrape_configs"] if job["job_name"] == "windfire")["dns_sd_configs"]
    command = services["frontend"]["command"]
    assert (found["names"], found["type"], found["port"]) == (
        ["frontend"],
        "A",
        int(command[command.index("--port") + 1]),
    )
    assert set(services["prometheus"]["networks"]) > set(services["frontend"]["networks"])
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])


def test_the_rules_own_tests_try_every_alert(rules: dict[str, dict[str, Any]]) -> None:
    quiet, wrong = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]
    assert {one["alertname"] for one in quiet["alert_rule_test"]} == set(rules)
    assert wrong["promql_expr_test"][0]["exp_samples"][0]["value"] == len(rules)
    series = [one["series"] for test in (quiet, wrong) for one in test["input_series"]]
    known = _known()
    assert {name for text in series for name, _ in _SERIES.findall(text)} <= set(known)


def test_the_dashboard_is_provisioned(dashboard: dict[str, Any], services: dict[str, Any]) -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/windfire.yml").read_text())["providers"]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    targets = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
