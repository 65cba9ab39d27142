"""What is counted, under which labels, and how it is shown."""

from __future__ import annotations

import http.client
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rsp.serving import exporter
from rsp.serving.exporter import MOST, MetricsServer
from rsp.serving.metrics import KEEP, Metrics, parse_server_timing
from rsp.shared.errors import ServingError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every series as (name, value of each label ...), in the form that Prometheus reads."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(Clock())
    made.serves("roofs", ["v1"], "v1")
    return made


def test_a_prediction_is_counted_and_measured(metrics):
    metrics.observe("roofs", "v1", 200, 0.3, "predict;dur=120.5, batch;dur=4")
    found = values(metrics)
    assert found["rsp_requests_total", "roofs", "200", "v1"] == 1
    assert found["rsp_request_seconds_sum", "roofs", "v1"] == pytest.approx(0.3)
    assert found["rsp_predict_seconds_sum", "roofs", "v1"] == pytest.approx(0.1205)
    assert found["rsp_queue_seconds_sum", "roofs", "v1"] == pytest.approx(0.1795)
    assert found["rsp_batch_tiles_sum", "roofs", "v1"] == 4
    assert found["rsp_request_seconds_bucket", "0.25", "roofs", "v1"] == 0
    assert found["rsp_request_seconds_bucket", "0.5", "roofs", "v1"] == 1
    assert not [name for name, *_ in found if name.endswith("_created")]


def test_a_refused_request_is_no_latency(metrics):
    metrics.observe("roofs", "v1", 400, 0.001)
    metrics.observe("roofs", "v1", 503, 2.0)
    found = values(metrics)
    assert found["rsp_requests_total", "roofs", "400", "v1"] == 1
    assert found["rsp_requests_total", "roofs", "503", "v1"] == 1
    assert found["rsp_request_seconds_count", "roofs", "v1"] == 1
    assert found["rsp_predict_seconds_count", "roofs", "v1"] == 0


def test_a_request_without_a_version_counts_for_the_default(metrics):
    metrics.serves("roofs", ["v1", "v2"], "v2")
    metrics.observe("roofs", None, 503, 0.1)
    metrics.observe("roofs", "", 503, 0.1)
    assert values(metrics)["rsp_requests_total", "roofs", "503", "v2"] == 2


def test_what_clients_invent_is_no_label(metrics):
    for number in range(100):
        metrics.observe(f"model{number}", f"v{number}", 404, 0.1)
        metrics.observe("roofs", f"1.{number}", 404, 0.1)
        metrics.observe(None, None, number * 1000, 0.1)
        metrics.live(f"source{number}", f"model{number}", 404, 0.1)
    found = {key[1:]: value for key, value in values(metrics).items() if key[0] == "rsp_requests_total"}
    assert {(model, version) for model, _, version in found} == {
        ("roofs", "v1"), ("roofs", "unknown"), ("unknown", "unknown")
    }  # fmt: skip
    assert {key: value for key, value in found.items() if value} == {
        ("roofs", "404", "unknown"): 100,
        ("unknown", "404", "unknown"): 100,
        ("unknown", "unknown", "unknown"): 100,
    }
    assert values(metrics)["rsp_live_requests_total", "unknown", "unknown", "404"] == 100


def test_series_of_a_version_that_went_are_removed(metrics):
    clock = metrics._clock
    metrics.serves("roofs", ["v1", "v2"], "v2")
    metrics.observe("roofs", "v1", 200, 0.1)
    metrics.workers("roofs", "v1", {"9000": 1})
    metrics.serves("roofs", ["v2"], "v2")
    clock.now += KEEP - 1
    metrics.observe("roofs", "v1", 404, 0.1)  # asked for while Prometheus still reads it
    assert ("rsp_requests_total", "roofs", "404", "v1") in values(metrics)
    clock.now += 1
    found = values(metrics)
    assert not [key for key in found if "v1" in key]
    assert ("rsp_request_seconds_count", "roofs", "v2") in found
    metrics.observe("roofs", "v1", 404, 0.1)
    assert values(metrics)["rsp_requests_total", "roofs", "404", "unknown"] == 1


def test_series_of_a_version_that_came_back_stay(metrics):
    metrics.serves("roofs", ["v2"], "v2")
    metrics.serves("roofs", ["v1", "v2"], "v1")
    metrics.observe("roofs", "v1", 200, 0.1)
    metrics._clock.now += 2 * KEEP
    assert values(metrics)["rsp_requests_total", "roofs", "200", "v1"] == 1


def test_a_hundred_releases_leave_no_series(metrics):
    before = len(values(metrics))
    for number in range(100):
        metrics.serves("roofs", [f"w{number}"], f"w{number}")
        metrics.observe("roofs", f"w{number}", 200, 0.1)
        metrics._clock.now += KEEP
    assert len(values(metrics)) == before


def test_restarts_are_workers_that_got_another_process(metrics):
    metrics.workers("roofs", "v1", {"9000": 1, "9001": 2})
    metrics.workers("roofs", "v1", {"9000": 1, "9001": 2})
    assert values(metrics)["rsp_worker_restarts_total", "roofs", "v1"] == 0
    metrics.workers("roofs", "v1", {"9000": 1})  # between its end and its start
    metrics.workers("roofs", "v1", {"9000": 3, "9001": 4, "9002": 5})
    assert values(metrics)["rsp_worker_restarts_total", "roofs", "v1"] == 2
    metrics.workers("roofs", "v9", {"9000": 6})
    assert values(metrics)["rsp_worker_restarts_total", "roofs", "v1"] == 2


def test_the_first_event_is_seen_by_rate(metrics):
    """A series that begins with its first event has never changed, as far as Prometheus can tell."""
    found = values(metrics)
    for status in ("200", "400", "500", "503"):
        assert found["rsp_requests_total", "roofs", status, "v1"] == 0
    for result in ("switched", "refused"):
        assert found["rsp_switches_total", "roofs", result] == 0
    for result in ("hit", "miss", "joined"):
        assert found["rsp_live_cache_total", result] == 0
    assert found["rsp_worker_restarts_total", "roofs", "v1"] == 0


def test_the_status_is_shown_as_gauges(metrics):
    status = {
        "ready": True,
        "draining": False,
        "store": {"reachable": False},
        "models": {
            "roofs": {"wanted": "v2", "serving": "v1", "state": "refused", "torch": "2.13.0"},
            "roads": {"wanted": "v1", "serving": None, "state": "fetching"},
        },
    }
    metrics.watch_status(lambda: status)
    metrics.switched("roofs", "refused")
    found = values(metrics)
    assert (found["rsp_ready",], found["rsp_draining",], found["rsp_store_reachable",]) == (1, 0, 0)
    assert found["rsp_release_info", "roofs", "2.13.0", "v1"] == 1
    assert found["rsp_release_state", "roofs", "refused"] == 1
    assert (found["rsp_release_behind", "roofs"], found["rsp_release_behind", "roads"]) == (1, 1)
    assert found["rsp_switches_total", "roofs", "refused"] == 1
    status["models"]["roofs"] |= {"serving": "v2", "state": "serving"}
    found = values(metrics)
    assert ("rsp_release_info", "roofs", "2.13.0", "v1") not in found
    assert found["rsp_release_behind", "roofs"] == 0


def test_the_live_front_counts_its_own(metrics):
    metrics.sources(["aerial"])
    metrics.models(["roads"])
    metrics.watch(live_queue=lambda: 7, connections=lambda: 3)
    metrics.live("aerial", "roads", 200, 0.2)
    metrics.source("aerial", 0.05)
    metrics.cache("miss")
    found = values(metrics)
    assert found["rsp_live_requests_total", "roads", "aerial", "200"] == 1
    assert found["rsp_live_request_seconds_count", "roads", "aerial"] == 1
    assert found["rsp_live_source_seconds_count", "aerial"] == 1
    assert found["rsp_live_cache_total", "miss"] == 1
    assert (found["rsp_live_queue",], found["rsp_connections",]) == (7, 3)


@pytest.mark.parametrize(
    ("header", "times"),
    [
        ("predict;dur=12.5, batch;dur=4", {"predict": 12.5, "batch": 4.0}),
        (b"predict; dur=3", {"predict": 3.0}),
        (None, {}),
        ("", {}),
        ("predict", {}),
        ("predict;dur=", {}),
        ("predict;dur=-1", {}),
        ("predict;dur=1e999", {}),
        ("predict;dur=nan,batch;dur=2", {"batch": 2.0}),
        ("a" * 10_000_000, {}),
    ],
)
def test_server_timing(header, times):
    assert parse_server_timing(header) == times


def test_the_port_shows_the_metrics_and_nothing_else(metrics, monkeypatch):
    monkeypatch.setattr(exporter._Handler, "timeout", 600)
    server = MetricsServer(metrics, "127.0.0.1", 0)
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert b'rsp_requests_total{model="roofs",status="200",version="v1"} 0.0' in answer.read()
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
        with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            MetricsServer(metrics, "127.0.0.1", server.port)
        # Who opens connections and says nothing takes the places there are, and no thread beyond them.
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MOST + 5)]
        idle[-1].settimeout(60)
        assert idle[-1].recv(1) == b""
        for each in idle:
            each.close()
    finally:
        server.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port))
