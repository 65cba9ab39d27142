"""The alerts of the server as a PrometheusRule, made from code; `make docs` writes it."""

from __future__ import annotations

from typing import Any

import yaml

from k8s.queries import FAILED, increase, quantile, rate, share

BY = "namespace, model"
GUIDE = "https://github.com/rsp-tools/rsp/blob/main/docs/serving.md"

# name, query, how long, severity, summary, what to do, section of docs/serving.md
ALERTS = [
    (
        "RspNoReadyReplica", "sum by (namespace) (rsp_ready) == 0", "2m", "critical",
        "No replica in {{ $labels.namespace }} can answer.",
        "GET /status of a pod says the state and the reason of each model; its log has one line for each state.",
        "what-happens-when",
    ),
    (
        "RspNotScraped", "absent(rsp_ready)", "10m", "critical",
        "Prometheus reads no metrics of any server.",
        "No pod runs, or the metrics port (8082) cannot be reached.",
        "metrics-and-alerts",
    ),
    (
        "RspReleaseRefused", f'max by ({BY}) (rsp_release_state{{state="refused"}}) == 1', "1m", "warning",
        "A release of {{ $labels.model }} was refused; the previous one goes on serving.",
        "GET /status says why. Deploy a release that is whole, or roll back, so that the store says what serves.",
        "what-happens-when",
    ),
    (
        "RspReleaseBehind", f"max by ({BY}) (rsp_release_behind) == 1", "15m", "warning",
        "A replica has not followed the store to the release of {{ $labels.model }} that is wanted.",
        "GET /status of each pod says in which state it is and why.",
        "what-happens-when",
    ),
    (
        "RspStoreUnreachable", "min by (namespace) (rsp_store_reachable) == 0", "10m", "warning",
        "A replica does not reach the release store; it goes on serving what it has.",
        "Look at the address, the credentials and the NetworkPolicy; new releases wait until it answers.",
        "what-happens-when",
    ),
    (
        "RspErrors",
        f"{share('rsp_requests_total', FAILED, BY, '', '5m')} > 0.02"
        f" and on ({BY}) {rate('rsp_requests_total', BY, '', '5m')} > 0.05",
        "5m", "critical",
        "More than 2 % of the requests to {{ $labels.model }} end as 5xx.",
        "503 and 429: too few workers or replicas. 500 and 507: workers die; the log says why.",
        "sizing",
    ),
    (
        "RspSlow", f"{quantile(0.99, 'rsp_request_seconds', BY, '', '5m')} > 5", "10m", "warning",
        "One in a hundred requests to {{ $labels.model }} takes more than 5 s.",
        "If the queue takes the time, add workers or replicas; if the model does, look at its size and precision.",
        "sizing",
    ),
    (
        "RspWorkerRestarts", increase("rsp_worker_restarts_total", BY, "", "15m") + " > 3", "0m", "warning",
        "Workers of {{ $labels.model }} die again and again.",
        "Most often the memory limit of the pod is too low for the workers and two versions of the model.",
        "sizing",
    ),
    (
        "RspLiveFull", share("rsp_live_requests_total", 'status="429"', "namespace", "", "5m") + " > 0.1",
        "10m", "warning",
        "The live front turns away more than 10 % of the tiles.",
        "Add replicas of rsp-serving, then of rsp-front.",
        "sizing",
    ),
]  # fmt: skip


def rules() -> dict[str, Any]:
    """Return the rules as Prometheus reads them."""
    return {
        "groups": [
            {
                "name": "rsp-serving",
                "rules": [
                    {
                        "alert": name,
                        "expr": query,
                        "for": wait,
                        "labels": {"severity": severity},
                        "annotations": {
                            "summary": summary,
                            "description": action,
                            "runbook_url": f"{GUIDE}#{section}",
                        },
                    }
                    for name, query, wait, severity, summary, action, section in ALERTS
                ],
            }
        ]
    }


def prometheus_rule() -> str:
    """Return the rules as an object of Prometheus' operator."""
    found = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rsp-serving"},
        "spec": rules(),
    }
    return f"# Made by k8s/alerts.py: change that, not this.\n{yaml.safe_dump(found, sort_keys=False, width=110)}"
