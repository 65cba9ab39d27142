"""The dashboard and the alerts: of metrics that the server has, read by Prometheus' own tool, and firing when they
should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from k8s.alerts import ALERTS, rules
from k8s.dashboard import WIDTH, dashboard
from rsp.serving.metrics import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads(dashboard())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES += [each["expr"] for each in DASHBOARD["annotations"]["list"]]
EVERY = [*QUERIES, *(query for _, query, *_ in ALERTS)]

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is of the Debian package prometheus"
)


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:rsp|process)_[a-z_]+\b", re.sub(r"\{[^}]*\}", "", query)))


def test_every_metric_is_one_that_the_server_has():
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each]
    asked = set().union(*map(names, [*EVERY, *variables]))
    there = Metrics().names()
    assert asked <= there
    # ... and what is measured is shown: a new metric wants a panel. A histogram is one metric.
    ours = {name for name in there if name.startswith("rsp_")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours} == {
        name for name in shown if name.startswith("rsp_")
    }


@pytest.mark.parametrize("query", EVERY)
def test_counters_are_asked_for_their_rate_and_labels_are_those_of_the_metric(query):
    for found in re.finditer(r"\brsp_[a-z_]+_(?:total|bucket|sum|count)\b", query):
        assert re.search(r"(rate|increase)\($", query[: found.start()]), found[0]
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    labels = {
        "le",
        "model",
        "version",
        "status",
        "result",
        "source",
        "state",
        "torch",
        "namespace",
        "pod",
        "instance",
    }
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", query):
        assert set(group.split(", ")) <= labels


def promtool(folder: Path, *arguments: str, **files: dict) -> subprocess.CompletedProcess:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True)


@needs_promtool
def test_prometheus_reads_every_query(tmp_path):
    filled = [re.sub(r'"\$\w+"', '".*"', query).replace("$__rate_interval", "5m") for query in QUERIES]
    records = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(filled)]
    panels = {"groups": [{"name": "panels", "rules": records}]}
    done = promtool(tmp_path, "check", "rules", "panels.yaml", "alerts.yaml", panels=panels, alerts=rules())
    assert done.returncode == 0, done.stdout + done.stderr
    records[0]["expr"] += ")"
    assert promtool(tmp_path, "check", "rules", "panels.yaml", panels=panels).returncode == 1  # the check can fail


# For each alert: series over half an hour that must fire it, and series that must not.
SERIES = {
    "RspNoReadyReplica": ({"rsp_ready": "0x60"}, {"rsp_ready": "1x60"}),
    "RspNotScraped": ({}, {"rsp_ready": "0x60"}),
    "RspReleaseRefused": (
        {'rsp_release_state{model="roofs", state="refused"}': "1x60"},
        {'rsp_release_state{model="roofs", state="serving"}': "1x60"},
    ),
    "RspReleaseBehind": (
        {'rsp_release_behind{model="roofs"}': "1x60"},
        {'rsp_release_behind{model="roofs"}': "1x20 0x40"},
    ),
    "RspStoreUnreachable": ({"rsp_store_reachable": "0x60"}, {"rsp_store_reachable": "1x60"}),
    "RspErrors": (
        {
            'rsp_requests_total{model="roofs", version="v1", status="200"}': "0+60x60",
            'rsp_requests_total{model="roofs", version="v1", status="503"}': "0+3x60",
        },
        {
            'rsp_requests_total{model="roofs", version="v1", status="200"}': "0+60x60",
            'rsp_requests_total{model="roofs", version="v1", status="400"}': "0+60x60",
        },
    ),
    "RspSlow": (
        {
            'rsp_request_seconds_bucket{model="roofs", version="v1", le="5.0"}': "0+90x60",
            'rsp_request_seconds_bucket{model="roofs", version="v1", le="10.0"}': "0+100x60",
            'rsp_request_seconds_bucket{model="roofs", version="v1", le="+Inf"}': "0+100x60",
        },
        {
            'rsp_request_seconds_bucket{model="roofs", version="v1", le="5.0"}': "0+100x60",
            'rsp_request_seconds_bucket{model="roofs", version="v1", le="+Inf"}': "0+100x60",
        },
    ),
    "RspWorkerRestarts": (
        {'rsp_worker_restarts_total{model="roofs", version="v1"}': "0+1x60"},
        {'rsp_worker_restarts_total{model="roofs", version="v1"}': "0x28 1x32"},
    ),
    "RspLiveFull": (
        {
            'rsp_live_requests_total{source="aerial", model="roofs", status="200"}': "0+60x60",
            'rsp_live_requests_total{source="aerial", model="roofs", status="429"}': "0+30x60",
        },
        {'rsp_live_requests_total{source="aerial", model="roofs", status="200"}': "0+60x60"},
    ),
}


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    assert SERIES.keys() == {name for name, *_ in ALERTS}
    tests = []
    for (name, *_), fires in ((alert, fires) for alert in ALERTS for fires in (True, False)):
        series = SERIES[name][0 if fires else 1]
        where = {} if name == "RspNotScraped" else {"namespace": "ml"}
        labels = [
            {"series": f"{key.partition('{')[0]}{{{inner(key)}}}", "values": value}
            for key, value in series.items()
        ]
        rule = next(rule for rule in rules()["groups"][0]["rules"] if rule["alert"] == name)
        if 'model="roofs"' in str(series) and name != "RspLiveFull":
            where["model"] = "roofs"
        texts = {
            key: text.replace("{{ $labels.model }}", "roofs").replace("{{ $labels.namespace }}", "ml")
            for key, text in rule["annotations"].items()
        }
        expected = [{"exp_labels": rule["labels"] | where, "exp_annotations": texts}] if fires else []
        tests.append(
            {
                "name": f"{name} {fires}",
                "interval": "30s",
                "input_series": labels,
                "alert_rule_test": [{"eval_time": "29m", "alertname": name, "exp_alerts": expected}],
            }
        )
    cases = {"rule_files": ["alerts.yaml"], "evaluation_interval": "30s", "tests": tests}
    done = promtool(tmp_path, "test", "rules", "cases.yaml", cases=cases, alerts=rules())
    assert done.returncode == 0, done.stdout + done.stderr


def inner(series: str) -> str:
    labels = series.partition("{")[2].rstrip("}")
    return ", ".join(filter(None, ['namespace="ml"', 'pod="rsp-serving-0"', labels]))


def test_every_alert_says_what_to_do():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for rule in rules()["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["description"]
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert url.endswith("/docs/serving.md") and anchor in anchors


def test_panels_lie_side_by_side():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= WIDTH
        taken |= cells
    for panel in PANELS:
        assert panel["title"] and panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")
def test_the_overlay_holds_the_dashboard_the_rules_and_the_monitor():
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s/overlays/monitoring")], capture_output=True, text=True, check=True
    )
    found = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert found["PrometheusRule"]["spec"] == rules()
    assert found["ConfigMap"]["data"] == {"rsp-serving.json": dashboard()}
    assert found["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    (door,) = found["PodMonitor"]["spec"]["podMetricsEndpoints"]
    (expression,) = found["PodMonitor"]["spec"]["selector"]["matchExpressions"]
    texts = [
        subprocess.run(
            ["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=True
        ).stdout
        for folder in ("k8s/base", "k8s/overlays/front")
    ]
    deployments = [each for text in texts for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    assert {each["metadata"]["name"] for each in deployments} == set(expression["values"])
    for deployment in deployments:
        template = deployment["spec"]["template"]
        assert template["metadata"]["labels"][expression["key"]] in expression["values"]
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports[door["port"]])
