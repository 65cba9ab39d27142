"""What a server counts and measures, by model and version, for Prometheus.

One `Metrics` belongs to a process: the proxy reports each request, the follower what serves, the live front its
own part; exporter.py shows them.

Clients write the names of models and versions into URLs, and each label that Prometheus has seen costs it memory.
So only what this server serves becomes a label; everything else is counted as "unknown".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

UNKNOWN = "unknown"
# Seconds for which the series of a version that went are kept: Prometheus comes by every 15 to 60 s, and would
# miss the last requests.
KEEP = 900.0

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TILES = (1, 2, 4, 8, 16, 32, 64)

# Statuses whose series begin at 0, so that `rate()` sees the first of them.
USUAL = ("200", "400", "500", "503")

Switch = Literal["switched", "refused"]
Cache = Literal["hit", "miss", "joined"]

_TIMING = re.compile(r"(?:^|,)\s*([a-z]{1,16})\s*;\s*dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(?=,|$)")


def parse_server_timing(header: str | bytes | None) -> dict[str, float]:
    """Return the numbers of a Server-Timing header, such as `predict;dur=12.5, batch;dur=4`, by their names.

    What has another form is left out: a header must never fail the request that it came with.
    """
    if not header:
        return {}
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    return {name: float(number) for name, number in _TIMING.findall(text[:500])}


@dataclass
class _Series:
    """The series of one version of one model: looked up once, not at each request."""

    seconds: Histogram
    queue: Histogram
    predict: Histogram
    tiles: Histogram
    requests: dict[str, Counter] = field(default_factory=dict)


class Metrics:
    """The metrics of one process, in a registry of their own.

    All methods can be called from any thread, and cost some microseconds.

    Args:
        clock: Tells the seconds after which series of a version that went are removed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, which says when it began
        self.registry = registry = CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}
        self._versions: dict[str, frozenset[str]] = {}
        self._default: dict[str, str] = {}
        self._gone: dict[tuple[str, str], float] = {}
        self._pids: dict[tuple[str, str], dict[str, int]] = {}
        self._sources: frozenset[str] = frozenset()
        version = ["model", "version"]
        self._requests = Counter(
            "rsp_requests", "Requests for predictions that were answered, by status.", [*version, "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "rsp_request_seconds", "Seconds from the end of a request to its answer; without 4xx.", version,
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._queue = Histogram(
            "rsp_queue_seconds", "Seconds of rsp_request_seconds in which no worker had the request.", version,
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._predict = Histogram(
            "rsp_predict_seconds", "Seconds that the worker took for the batch with the request.", version,
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._tiles = Histogram(
            "rsp_batch_tiles", "Tiles in the batch with the request.", version, registry=registry, buckets=TILES
        )
        self._restarts = Counter(
            "rsp_worker_restarts", "Workers that ended and were started again.", version, registry=registry
        )
        self._switches = Counter(
            "rsp_switches", "Changes of the release that serves, and releases that were refused.",
            ["model", "result"], registry=registry,
        )  # fmt: skip
        self._live_requests = Counter(
            "rsp_live_requests", "Tiles that the live front was asked for, by status.",
            ["source", "model", "status"], registry=registry,
        )  # fmt: skip
        self._live_seconds = Histogram(
            "rsp_live_request_seconds", "Seconds that the live front took for a tile; without 4xx.",
            ["source", "model"], registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._live_source = Histogram(
            "rsp_live_source_seconds", "Seconds until a source had given the pixels of a tile.", ["source"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._live_cache = Counter(
            "rsp_live_cache", "Tiles found in the cache (hit), not found (miss), or already under way (joined).",
            ["result"], registry=registry,
        )  # fmt: skip
        for result in get_args(Cache):
            self._live_cache.labels(result)
        self._gauges = {
            name: Gauge(name, text, registry=registry)
            for name, text in (
                ("rsp_connections", "Open connections of clients."),
                ("rsp_live_queue", "Tiles that wait in the live front for their turn."),
                ("rsp_live_running", "Tiles that the live front works on."),
                ("rsp_live_cache_bytes", "Bytes in the cache of the live front."),
            )
        }
        self._status = _Status()
        registry.register(self._status)
        ProcessCollector(registry=registry)

    def observe(
        self,
        model: str | None,
        version: str | None,
        status: int,
        seconds: float,
        server_timing: str | bytes | None = None,
    ) -> None:
        """Count a request for a prediction.

        Args:
            model: The name in its URL.
            version: The version that answered (X-Model-Version); else the one in the URL; None for the default.
            status: Of the answer.
            seconds: From the end of the request to the answer.
            server_timing: The worker's header of that name: `predict;dur=<ms>, batch;dur=<tiles>`.
        """
        times = parse_server_timing(server_timing)
        with self._lock:
            model, version = self._known(model, version)
            series = self._series.get((model, version)) or self._begin(model, version)
            code = _code(status)
            counter = series.requests.get(code)
            if counter is None:
                counter = series.requests[code] = self._requests.labels(model, version, code)
            counter.inc()
            # A request that is refused at once says nothing of how long a prediction takes.
            if code.startswith("4"):
                return
            series.seconds.observe(seconds)
            if "predict" in times:
                took = times["predict"] / 1000
                series.predict.observe(took)
                series.queue.observe(max(0.0, seconds - took))
            if "batch" in times:
                series.tiles.observe(times["batch"])

    def serves(self, model: str, versions: Iterable[str], default: str | None = None) -> None:
        """Say which versions of a model can answer now.

        The series of others are removed some minutes later.

        Args:
            model: Its name.
            versions: All that are registered, the old one that drains too; none if the model goes.
            default: The version that answers where a request names none.
        """
        with self._lock:
            now, before = frozenset(versions), self._versions.get(model, frozenset())
            for version in before - now:
                self._gone[model, version] = self._clock()
                self._pids.pop((model, version), None)
            for version in now:
                self._gone.pop((model, version), None)
                if version not in before:
                    self._begin(model, version)
            for result in get_args(Switch):
                self._switches.labels(model, result)
            self._versions[model] = now
            self._default.pop(model, None)
            if default is not None:
                self._default[model] = default
            self._remove_old()

    def workers(self, model: str, version: str, pids: Mapping[str, int]) -> None:
        """Count the workers that were started again since the last call.

        Args:
            model: Name of the model.
            version: Its version.
            pids: The process of each worker, by the worker's own name: a worker keeps its name when TorchServe
                starts it again.
        """
        with self._lock:
            if version not in self._versions.get(model, ()):
                return
            before = self._pids.setdefault((model, version), {})
            again = sum(1 for worker, pid in pids.items() if before.get(worker, pid) != pid)
            before.update(pids)
            if again:
                self._restarts.labels(model, version).inc(again)

    def switched(self, model: str, result: Switch) -> None:
        """Count a change of the release that serves, or one that was refused."""
        self._switches.labels(model, result).inc()

    def sources(self, names: Iterable[str]) -> None:
        """Say which sources the live front has."""
        self._sources = frozenset(names)

    def models(self, names: Iterable[str]) -> None:
        """Say which models the live front asks for; names that `serves` tells need not be told again."""
        with self._lock:
            for name in names:
                self._versions.setdefault(name, frozenset())

    def live(self, source: str, model: str, status: int, seconds: float) -> None:
        """Count a tile that the live front was asked for."""
        source = source if source in self._sources else UNKNOWN
        model = model if model in self._versions else UNKNOWN
        self._live_requests.labels(source, model, _code(status)).inc()
        if not 400 <= status < 500:
            self._live_seconds.labels(source, model).observe(seconds)

    def source(self, source: str, seconds: float) -> None:
        """Count a tile that a source of the live front has given."""
        self._live_source.labels(source if source in self._sources else UNKNOWN).observe(seconds)

    def cache(self, result: Cache) -> None:
        """Count whether the live front had a tile already."""
        self._live_cache.labels(result).inc()

    def watch(self, **gauges: Callable[[], float]) -> None:
        """Ask for these gauges whenever somebody reads the metrics.

        Args:
            gauges: `connections`, `live_queue`, `live_running`, `live_cache_bytes`.
        """
        for name, value in gauges.items():
            self._gauges[f"rsp_{name}"].set_function(value)

    def watch_status(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Show what /status shows (`Follower.status`) as gauges, whenever somebody reads the metrics."""
        self._status.read = status

    def render(self) -> bytes:
        """Return all metrics as the text that Prometheus reads."""
        with self._lock:
            self._remove_old()
        return generate_latest(self.registry)

    def names(self) -> set[str]:
        """Return the name of every series that can be queried."""
        found = set()
        for metric in self.registry.collect():
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
            found |= {metric.name + ending for ending in endings}
        return found

    def _known(self, model: str | None, version: str | None) -> tuple[str, str]:
        versions = self._versions.get(model or "")
        if model is None or versions is None:
            return UNKNOWN, UNKNOWN
        version = version or self._default.get(model, UNKNOWN)
        if version in versions or (model, version) in self._gone:
            return model, version
        return model, UNKNOWN

    def _begin(self, model: str, version: str) -> _Series:
        """Make the series of a version, at 0: `rate()` sees only what changes after a series has begun."""
        found = self._series.get((model, version))
        if found is not None:
            return found
        series = self._series[model, version] = _Series(
            seconds=self._seconds.labels(model, version),
            queue=self._queue.labels(model, version),
            predict=self._predict.labels(model, version),
            tiles=self._tiles.labels(model, version),
        )
        self._restarts.labels(model, version)
        for code in USUAL:
            series.requests[code] = self._requests.labels(model, version, code)
        return series

    def _remove_old(self) -> None:
        end = self._clock() - KEEP
        for model, version in [key for key, since in self._gone.items() if since <= end]:
            del self._gone[model, version]
            series = self._series.pop((model, version), None)
            if series is None:
                continue
            for code in series.requests:
                self._requests.remove(model, version, code)
            for each in (self._seconds, self._queue, self._predict, self._tiles, self._restarts):
                each.remove(model, version)


class _Status(Collector):
    """What /status shows, read when the metrics are read."""

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[str, Any]] = dict

    def collect(self) -> Iterator[Metric]:
        status = self.read()
        store = status.get("store", {})
        for name, value, text in (
            ("rsp_ready", status.get("ready"), "1 where a verified release answers and no drain is on."),
            ("rsp_draining", status.get("draining"), "1 where this server is about to end."),
            (
                "rsp_store_reachable",
                store.get("reachable"),
                "1 where the release store answers.",
            ),
        ):
            metric = GaugeMetricFamily(name, text)
            if value is not None:
                metric.add_metric([], float(bool(value)))
            yield metric
        info = GaugeMetricFamily(
            "rsp_release_info", "1 for the release that serves, with what it is.",
            labels=["model", "version", "torch"],
        )  # fmt: skip
        state = GaugeMetricFamily(
            "rsp_release_state", "1 for the state of a model: serving, refused, fetching ...",
            labels=["model", "state"],
        )  # fmt: skip
        behind = GaugeMetricFamily(
            "rsp_release_behind", "1 where another release serves than the one that is wanted.", labels=["model"]
        )
        for model, each in sorted(status.get("models", {}).items()):
            if each.get("serving"):
                info.add_metric([model, each["serving"], each.get("torch") or ""], 1.0)
            state.add_metric([model, str(each.get("state"))], 1.0)
            behind.add_metric([model], float(each.get("wanted") != each.get("serving")))
        yield from (info, state, behind)


def _code(status: int) -> str:
    return str(status) if 100 <= status <= 599 else UNKNOWN
