"""A small Kubeflow Pipelines: the endpoints of its v2beta1 API that are called, over HTTP, kept in memory.

Runs do nothing here; `KfpServer.play` gives one the nodes that Argo would have made of its steps.
"""

from __future__ import annotations

import json
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

EPOCH = "1970-01-01T00:00:00Z"  # what the server gives for a time that is not there
PAGE = 2  # what the server gives at most, whatever was asked for: clients must turn pages


class KfpServer:
    """Use as a context manager; `.url` is its address, `.kinds` all that it holds."""

    def __init__(self, token: str | None = None):
        self.kinds: dict[str, dict[str, dict]] = {
            "experiments": {}, "pipelines": {}, "versions": {}, "runs": {}, "recurringruns": {}
        }  # fmt: skip
        self.token = token
        self.requests: list[str] = []
        self.count = 0
        self.fail_on: set[str] = set()
        self.away = lambda name: False  # whether a request is answered 503
        # What /healthz says: the API server's words, or those of the UI in front of it.
        self.health: dict = {"commit_sha": "2715a33", "tag_name": "2.16.0", "multi_user": False}
        self.ways = {"v1alpha1", "v2beta1", "ui"}  # how logs can be asked for
        self.logs: dict[str, str] = {}  # by pod
        self.script: list[dict] = []  # what the next looks at a run see: each changes it
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, key: str, values: dict) -> dict:
        self.count += 1
        identity = f"{kind}-{self.count}"
        self.kinds[kind][identity] = {**values, key: identity}
        return self.kinds[kind][identity]

    def play(self, run_id, steps, state="RUNNING", *, own_names=False, error=None, seconds=30) -> dict:
        """Give a run a state and the nodes of its steps.

        Args:
            run_id: The run.
            steps: Name, state and logs: a list of those of each attempt, or a text where it is tried only once.
            state: Of the run.
            own_names: Whether nodes tell their own pods, which servers do only lately.
            error: What the server says went wrong.
            seconds: How long each step took.
        """
        flow = "training-x7k2p"
        run = self.kinds["runs"][run_id]
        tasks: list[dict] = []

        def add(path: str, name: str, state: str, children: list[str], begin: int, pod: str | None = None) -> None:
            times = {"start_time": _time(begin), "end_time": _time(begin + seconds) if state in ENDED else EPOCH}
            own = {"pod_name": pod or f"{flow}-{_hash(path)}"} if own_names else {}
            tasks.append({
                "run_id": run_id, "task_id": f"task-{len(tasks)}", "display_name": name, "state": state, **times,
                **own, "child_tasks": [{"pod_name": f"{flow}-{_hash(child)}"} for child in children],
            })  # fmt: skip

        root = f"{flow}.root"
        add(flow, flow, state, [f"{flow}.root-driver", root], 0)
        add(f"{flow}.root-driver", "root-driver", "SUCCEEDED", [root], 0)
        add(root, "root", state, [f"{root}.{name}-driver" for name, *_ in steps], 0)
        for number, (name, step_state, attempts) in enumerate(steps):
            path, begin = f"{root}.{name}", 1 + number * (seconds + 1)
            node, single = f"{path}.executor", isinstance(attempts, str)
            tried = [node] if single else [f"{node}({attempt})" for attempt in range(len(attempts))]
            template = "system-container-impl" if single else "retry-system-container-impl"
            pods = [f"{flow}-{template}-{_hash(each)}" for each in tried]
            add(f"{path}-driver", f"{name}-driver", "SUCCEEDED", [path], begin)
            add(path, name, step_state, [node], begin)
            if not single:
                add(node, "executor", step_state, tried, begin)
            for attempt, (each, pod) in enumerate(zip(tried, pods, strict=True)):
                add(each, "executor" if single else f"executor({attempt})", step_state, [], begin, pod)
            self.logs.update(zip(pods, [attempts] if single else attempts, strict=True))
        tasks.sort(key=lambda task: _hash(task["task_id"]))  # in no order that means anything
        run.update(state=state, created_at=_time(0), finished_at=_time(99) if state in ENDED else EPOCH)
        run["run_details"] = {"task_details": tasks}
        if error:
            run["error"] = {"code": 13, "message": error}
        return run


ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


def _time(seconds: int) -> str:
    return f"2026-11-25T03:{seconds // 60:02}:{seconds % 60:02}Z"


def _hash(path: str) -> int:
    """Return the number by which Argo knows a node: the FNV-1a hash of its path."""
    value = 2166136261
    for byte in path.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


class _Handler(BaseHTTPRequestHandler):
    server_state: KfpServer

    def log_message(self, *_):
        pass

    def _send(self, status: int, body: dict | str, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        state = self.server_state
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = f"{self.command} {url.path.removeprefix('/apis/v2beta1/')}"
        state.requests.append(name)
        if state.token and self.headers.get("authorization") != f"Bearer {state.token}":
            return self._send(401, {"message": "who are you?"})
        if state.away(name):
            return self._send(503, {"message": "restarting"})
        if name in state.fail_on:
            return self._send(500, {"message": "the database is away"})
        parts = url.path.removeprefix("/apis/v2beta1/").split("/")
        match self.command, parts:
            case "GET", ["runs", identity] if identity in state.kinds["runs"]:
                run = state.kinds["runs"][identity]
                if state.script:
                    state.play(identity, **state.script.pop(0))
                return self._send(200, run)
            case "GET", ["runs", _, "nodes", pod, "log"] if "v2beta1" in state.ways:
                return self._log(pod)
            case "GET", ["", "apis", "v1alpha1", "runs", _, "nodes", pod, "log"] if "v1alpha1" in state.ways:
                return self._log(pod)
            case "GET", ["", "k8s", "pod", "logs"] if "ui" in state.ways:
                return self._log(query["podname"])
            case "GET", ["", *_] if "ui" in state.ways:
                return self._send(200, "<!doctype html><title>Kubeflow Pipelines</title>", "text/html")
            case "GET", ["healthz"]:
                return self._send(200, state.health)
            case "GET", [("experiments" | "pipelines" | "recurringruns" | "runs") as kind]:
                return self._list(kind, state.kinds[kind].values(), query)
            case "GET", ["pipelines", identity, "versions"]:
                versions = [item for item in state.kinds["versions"].values() if item["pipeline_id"] == identity]
                return self._list("pipeline_versions", versions, query)
            case "POST", ["experiments"]:
                return self._send(200, state.add("experiments", "experiment_id", json.loads(body)))
            case "POST", ["pipelines", "upload"]:
                pipeline = state.add("pipelines", "pipeline_id", {"display_name": query["name"]})
                # The server makes the first version at once, and names it like the pipeline.
                self._version(pipeline["pipeline_id"], query["name"], body)
                return self._send(200, pipeline)
            case "POST", ["pipelines", "upload_version"]:
                return self._send(200, self._version(query["pipelineid"], query["name"], body))
            case "POST", ["runs"]:
                run = json.loads(body)
                assert run["experiment_id"] in state.kinds["experiments"]
                return self._send(200, state.add("runs", "run_id", run))
            case "POST", ["recurringruns"]:
                run = json.loads(body)
                reference = run["pipeline_version_reference"]
                assert reference["pipeline_version_id"] in state.kinds["versions"]
                assert len(run["trigger"]["cron_schedule"]["cron"].split()) == 6
                return self._send(200, state.add("recurringruns", "recurring_run_id", run))
            case "DELETE", ["recurringruns", identity] if identity in state.kinds["recurringruns"]:
                del state.kinds["recurringruns"][identity]
                return self._send(200, {})
        return self._send(404, {"message": f"no {name}"})

    def _log(self, pod: str) -> None:
        if pod in self.server_state.logs:
            return self._send(200, self.server_state.logs[pod], "text/plain; charset=utf-8")
        return self._send(500, {"error_message": "error in opening log stream: pods not found"})

    do_GET = do_POST = do_DELETE = _handle

    def _version(self, pipeline_id: str, name: str, body: bytes) -> dict:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = BytesParser().parsebytes(head + body).get_payload()
        documents = list(yaml.load_all(part.get_payload(decode=True), yaml.CSafeLoader))
        assert documents[0]["pipelineInfo"]["name"]
        values = {"pipeline_id": pipeline_id, "display_name": name, "pipeline_spec": documents[0]}
        values["documents"] = len(documents)
        return self.server_state.add("versions", "pipeline_version_id", values)

    def _list(self, kind: str, items, query: dict) -> None:
        found = list(items)
        if "filter" in query:
            for predicate in json.loads(query["filter"])["predicates"]:
                wanted = predicate.get("stringValue") or predicate.get("string_value")
                found = [item for item in found if item[predicate["key"]] == wanted]
        if "experiment_id" in query:
            found = [item for item in found if item["experiment_id"] == query["experiment_id"]]
        if query.get("sort_by") == "created_at desc":
            found.sort(key=lambda item: item["created_at"], reverse=True)
        begin = int(query.get("page_token") or 0)
        key = "recurringRuns" if kind == "recurringruns" else kind
        answer = {key: found[begin : begin + PAGE], "total_size": len(found)}
        if begin + PAGE < len(found):
            answer["next_page_token"] = str(begin + PAGE)
        self._send(200, answer)
