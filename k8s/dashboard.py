"""The Grafana dashboard of the server, made from code; `make docs` writes it."""

from __future__ import annotations

import json
from typing import Any

from k8s.queries import ALL, CHOSEN, FAILED, WINDOW, chosen, increase, mean, quantile, rate, share

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def dashboard() -> str:
    """Return the dashboard as JSON, as Grafana imports it."""
    found = {
        "uid": "rsp-serving",
        "title": "RSP serving",
        "description": "Made by k8s/dashboard.py: change that, not this.",
        "tags": ["rsp"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_switches()]},
        "panels": _placed(_rows()),
    }
    return json.dumps(found, indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    queries = {
        "namespace": "label_values(rsp_ready, namespace)",
        "model": f"label_values({chosen('rsp_requests_total', ALL)}, model)",
        "version": f"label_values({chosen('rsp_requests_total', CHOSEN)}, version)",
    }
    many = {
        "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        *(
            {"name": name, "label": name.capitalize(), "definition": query, **many}
            | {"query": {"query": query, "refId": name}}
            for name, query in queries.items()
        ),
    ]


def _switches() -> dict[str, Any]:
    return {
        "name": "Releases", "datasource": SOURCE, "enable": True, "iconColor": "purple", "step": "30s",
        "expr": increase("rsp_switches_total", "model, result", CHOSEN, "1m") + " > 0",
        "titleFormat": "{{model}}", "textFormat": "{{result}}", "tagKeys": "model,result",
    }  # fmt: skip


def _rows() -> list[tuple[str, list[dict[str, Any]]]]:
    return [
        ("Now", _now()),
        ("Requests", _requests()),
        ("Where the time goes", _times()),
        ("Releases and workers", _releases()),
        ("Live map", _live()),
        # Of the Python process; TorchServe and its workers are processes of their own in the same pod.
        ("Proxy, follower and front", _process()),
    ]


def _now() -> list[dict[str, Any]]:
    return [
        _number("Ready replicas", f"sum({chosen('rsp_ready', ALL)})", red_below=1),
        _number("Predictions", rate("rsp_requests_total"), unit="reqps"),
        _number("5xx", share("rsp_requests_total", FAILED), unit="percentunit", red_above=0.02),
        _number("p95", quantile(0.95, "rsp_request_seconds"), unit="s", red_above=5),
        _number("Replicas behind", f"sum({chosen('rsp_release_behind', CHOSEN)})", red_above=1),
        _number("Stores unreachable", f"sum(1 - {chosen('rsp_store_reachable', ALL)})", red_above=1),
    ]


def _requests() -> list[dict[str, Any]]:
    each, by = "{{model}} {{version}}", "model, version"
    return [
        _graph("Requests by status", {"{{status}}": rate("rsp_requests_total", "status")}, "reqps"),
        _graph("Requests by version", {each: rate("rsp_requests_total", by)}, "reqps"),
        _graph("5xx by version", {each: share("rsp_requests_total", FAILED, by)}, "percentunit"),
        *(
            _graph(f"Latency {name} by version", {each: quantile(part, "rsp_request_seconds", by)}, "s")
            for name, part in QUANTILES.items()
        ),
    ]


def _times() -> list[dict[str, Any]]:
    def quantiles(histogram: str) -> dict[str, str]:
        return {f"{name} {{{{model}}}}": quantile(part, histogram, "model") for name, part in QUANTILES.items()}

    return [
        _graph("Without a worker (queue)", quantiles("rsp_queue_seconds"), "s"),
        _graph("With a worker (predict)", quantiles("rsp_predict_seconds"), "s"),
        _graph("Tiles a batch", {"{{model}} {{version}}": mean("rsp_batch_tiles", "model, version")}, "short"),
    ]


def _releases() -> list[dict[str, Any]]:
    info, state = chosen("rsp_release_info", CHOSEN), chosen("rsp_release_state", CHOSEN)
    return [
        _table("Releases that serve", f"count by (model, version, torch) ({info})"),
        _graph("States (replicas)", {"{{model}} {{state}}": f"sum by (model, state) ({state})"}, "short"),
        _graph(
            "Switches and refused releases",
            {"{{model}} {{result}}": increase("rsp_switches_total", "model, result", CHOSEN)},
            "short",
        ),
        _graph(
            "Worker restarts",
            {"{{model}} {{version}}": increase("rsp_worker_restarts_total", "model, version", CHOSEN)},
            "short",
        ),
        _graph(
            "Ready and draining replicas",
            {name: f"sum({chosen(f'rsp_{name}', ALL)})" for name in ("ready", "draining")},
            "short",
        ),
        _graph("Connections", {"{{pod}}": f"sum by (pod) ({chosen('rsp_connections', ALL)})"}, "short"),
    ]


def _live() -> list[dict[str, Any]]:
    each, by = "{{source}} {{model}}", "source, model"
    bytes_held = f"sum by (pod) ({chosen('rsp_live_cache_bytes', ALL)})"
    return [
        _graph("Tiles by status", {"{{status}}": rate("rsp_live_requests_total", "status", CHOSEN)}, "reqps"),
        _graph("Tiles by source and model", {each: rate("rsp_live_requests_total", by, CHOSEN)}, "reqps"),
        _graph("Latency p95", {each: quantile(0.95, "rsp_live_request_seconds", by, CHOSEN)}, "s"),
        _graph("Sources p95", {"{{source}}": quantile(0.95, "rsp_live_source_seconds", "source", ALL)}, "s"),
        _graph(
            "Cache",
            {
                name: share("rsp_live_cache_total", f'result="{name}"', where=ALL)
                for name in ("hit", "joined", "miss")
            },
            "percentunit",
        ),
        _graph(
            "Queue", {name: f"sum({chosen(f'rsp_live_{name}', ALL)})" for name in ("queue", "running")}, "short"
        ),
        _graph("Bytes in the cache", {"{{pod}}": bytes_held}, "bytes"),
    ]


def _process() -> list[dict[str, Any]]:
    ours = f"and on (pod, instance) {chosen('rsp_connections', ALL)}"
    cpu = f"rate({chosen('process_cpu_seconds_total', ALL)}[{WINDOW}])"
    memory = chosen("process_resident_memory_bytes", ALL)
    return [
        _graph("CPU", {"{{pod}}": f"sum by (pod) ({cpu} {ours})"}, "short"),
        _graph("Memory", {"{{pod}}": f"sum by (pod) ({memory} {ours})"}, "bytes"),
    ]


def _number(
    title: str, query: str, *, unit: str = "short", red_below: float | None = None, red_above: float | None = None
) -> dict[str, Any]:
    """Return a panel of one number, red past a limit."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": red_below}]
    if red_above is not None:
        steps.append({"color": "red", "value": red_above})
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}}
    return _panel("stat", title, {"": query}, defaults, 4, 4) | {
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    }


def _graph(title: str, queries: dict[str, str], unit: str) -> dict[str, Any]:
    """Return a panel of lines, one for each series of each query, by what the legend says."""
    defaults = {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "showPoints": "never"}}
    return _panel("timeseries", title, queries, defaults, 8, 8) | {
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    }


def _table(title: str, query: str) -> dict[str, Any]:
    panel = _panel("table", title, {"": query}, {}, 8, 8)
    panel["targets"][0] |= {"instant": True, "format": "table"}
    panel["transformations"] = [
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True}, "renameByName": {"Value": "replicas"}},
        }
    ]
    return panel


def _panel(
    kind: str, title: str, queries: dict[str, str], defaults: dict[str, Any], width: int, height: int
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(queries.items())
        ],
    }


def _placed(rows: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return the panels of all rows with their ids and places, from left to right and from top to bottom."""
    placed: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows:
        placed.append(
            {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}, "panels": []}
        )
        top, left, height = top + 1, 0, 0
        for panel in panels:
            place = panel["gridPos"]
            if left + place["w"] > WIDTH:
                top, left, height = top + height, 0, 0
            panel["gridPos"] = {"x": left, "y": top, **place}
            left, height = left + place["w"], max(height, place["h"])
            placed.append(panel)
        top += height
    return [{"id": number, **panel} for number, panel in enumerate(placed, start=1)]
