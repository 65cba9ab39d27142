"""A small Kubeflow Pipelines: the few endpoints that kfp's client calls, over HTTP, kept in memory."""

from __future__ import annotations

import json
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

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


class _Handler(BaseHTTPRequestHandler):
    server_state: KfpServer

    def log_message(self, *_):
        pass

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
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
        if name in state.fail_on:
            return self._send(500, {"message": "the database is away"})
        parts = url.path.removeprefix("/apis/v2beta1/").split("/")
        match self.command, parts:
            case "GET", ["healthz"]:
                return self._send(200, {"multi_user": False})
            case "GET", [("experiments" | "pipelines" | "recurringruns") as kind]:
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

    do_GET = do_POST = do_DELETE = _handle

    def _version(self, pipeline_id: str, name: str, body: bytes) -> dict:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = BytesParser().parsebytes(head + body).get_payload()
        documents = list(yaml.safe_load_all(part.get_payload(decode=True)))
        assert documents[0]["pipelineInfo"]["name"]
        values = {"pipeline_id": pipeline_id, "display_name": name, "pipeline_spec": documents[0]}
        return self.server_state.add("versions", "pipeline_version_id", values)

    def _list(self, kind: str, items, query: dict) -> None:
        found = list(items)
        if "filter" in query:
            for predicate in json.loads(query["filter"])["predicates"]:
                wanted = predicate.get("stringValue") or predicate.get("string_value")
                found = [item for item in found if item[predicate["key"]] == wanted]
        if "experiment_id" in query:
            found = [item for item in found if item["experiment_id"] == query["experiment_id"]]
        begin = int(query.get("page_token") or 0)
        key = "recurringRuns" if kind == "recurringruns" else kind
        answer = {key: found[begin : begin + PAGE], "total_size": len(found)}
        if begin + PAGE < len(found):
            answer["next_page_token"] = str(begin + PAGE)
        self._send(200, answer)
