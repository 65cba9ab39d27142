"""A Kubernetes API with a Kubeflow Trainer behind it, as far as a step needs them, over real HTTP.

It checks what an API server checks: the token, the rights of the Role in k8s/runs, the CustomResourceDefinition of
TrainJob. What a training then does, a test says as a function of the `Job`: it makes pods, writes their logs, and
ends. `real_pods` starts the command of the TrainJob once for each node, with what Trainer's runtime
`torch-distributed` puts into their environment.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.k8s.schemas import CRDS, described

ROOT = Path(__file__).parents[3]
NAMESPACE, TOKEN = "team-a", "let-me-in"
PATHS = re.compile(
    rf"/(?:api/v1|apis/trainer\.kubeflow\.org/v1alpha1)/namespaces/{NAMESPACE}/"
    r"(?P<kind>pods|trainjobs)(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)


@cache
def rights() -> dict[str, set[str]]:
    """What the Role of a namespace of runs grants, by resource."""
    documents = yaml.safe_load_all((ROOT / "k8s" / "runs" / "training.yaml").read_text())
    (role,) = (each for each in documents if each["kind"] == "Role")
    return {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}


@dataclass
class Pod:
    """A pod with one container; its log grows until it has ended."""

    name: str
    labels: dict[str, str]
    status: dict[str, Any] = field(default_factory=lambda: {"phase": "Running"})
    spec: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def write(self, *texts: str) -> None:
        with self.changed:
            for text in texts:
                moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=len(self.lines))
                self.lines.append(f"{moment.isoformat()} {text}\n")
            self.changed.notify_all()

    def end(self, code: int = 0, reason: str = "Error") -> None:
        with self.changed:
            self.ended = True
            self.status["phase"] = "Failed" if code else "Succeeded"
            state = {"exitCode": code, "reason": reason if code else "Completed"}
            self.status["containerStatuses"] = [{"state": {"terminated": state}}]
            self.changed.notify_all()

    def waits(self, reason: str, message: str = "") -> None:
        self.status["phase"] = "Pending"
        self.status["containerStatuses"] = [{"state": {"waiting": {"reason": reason, "message": message}}}]

    def described(self) -> dict[str, Any]:
        metadata = {"name": self.name, "uid": f"uid-of-{self.name}", "labels": self.labels}
        return {"metadata": metadata, "spec": self.spec, "status": self.status}


@dataclass
class Job:
    """A TrainJob that was made."""

    server: Server
    manifest: dict[str, Any]
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return self.manifest["metadata"]["name"]

    def pod(self, node: int = 0) -> Pod:
        """Make the pod of a node."""
        labels = {
            "jobset.sigs.k8s.io/jobset-name": self.name,
            "batch.kubernetes.io/job-completion-index": str(node),
        }
        made = Pod(f"{self.name}-node-0-{node}-x{node}", labels)
        self.server.pods[made.name] = made
        return made

    def condition(self, kind: str, reason: str = "Jobs", message: str = "") -> None:
        self.manifest["status"] = {
            "conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]
        }


Behaviour = Callable[[Job], None]


@dataclass
class Refusal:
    """An answer in place of the usual one."""

    code: int
    message: str
    times: int = 1


class Server(ThreadingHTTPServer):
    """The API. `behave` is what trainings do; `refusals` holds answers to the next requests, by `verb kind`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, Job] = {}
        self.made: list[Job] = []
        self.pods: dict[str, Pod] = {}
        self.behave: Behaviour = lambda job: job.condition("Complete")
        self.refusals: dict[str, Refusal] = {}
        self.calls: list[str] = []
        # After how many lines each connection for a log breaks; None never.
        self.log_breaks: int | None = None

    def kubeconfig(self, path: Path) -> Path:
        host = f"http://127.0.0.1:{self.server_address[1]}"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": host}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": NAMESPACE}}],
        }))  # fmt: skip
        return path

    def remove(self, name: str) -> None:
        job = self.jobs.pop(name)
        job.gone.set()
        for pod in [each for each in self.pods.values() if job.name in each.labels.values()]:
            pod.end(143)
            del self.pods[pod.name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, body: Any) -> None:
        if code >= 400:
            body = {"kind": "Status", "status": "Failure", "message": body, "code": code}
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self, verb: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        found = PATHS.fullmatch(url.path)
        if not found:
            return self.answer(404, f"the server could not find the requested resource {url.path}")
        kind = found["kind"] + (found["log"] or "")
        verb = "list" if verb == "get" and not found["name"] else verb
        self.server.calls.append(f"{verb} {kind}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, "Unauthorized")
        if verb not in rights().get(kind, set()):
            return self.answer(403, f"{kind} is forbidden: default-editor cannot {verb} it")
        if (refusal := self.server.refusals.get(f"{verb} {kind}")) and refusal.times:
            refusal.times -= 1
            return self.answer(refusal.code, refusal.message)
        return getattr(self, f"{verb}_{kind.replace('/', '_')}")(found["name"], body, query)

    def create_trainjobs(self, _: str, manifest: Any, __: Any) -> None:
        if CRDS.is_dir() and (wrong := described(manifest)):
            return self.answer(422, f"TrainJob is invalid: {wrong[0]}")
        job = Job(self.server, manifest)
        if job.name in self.server.jobs:
            return self.answer(409, f"trainjobs {job.name} already exists")
        self.server.jobs[job.name] = job
        self.server.made.append(job)
        threading.Thread(target=self.server.behave, args=(job,), daemon=True).start()
        return self.answer(201, manifest)

    def get_trainjobs(self, name: str, *_: Any) -> None:
        if name not in self.server.jobs:
            return self.answer(404, f"trainjobs {name} not found")
        return self.answer(200, self.server.jobs[name].manifest)

    def delete_trainjobs(self, name: str, _: Any, query: dict[str, str]) -> None:
        if name not in self.server.jobs:
            return self.answer(404, f"trainjobs {name} not found")
        assert query["propagationPolicy"] == "Foreground"
        self.server.remove(name)
        return self.answer(200, {"kind": "Status", "status": "Success"})

    def list_pods(self, _: str, __: Any, query: dict[str, str]) -> None:
        key, _, value = query["labelSelector"].partition("=")
        pods = [pod.described() for pod in list(self.server.pods.values()) if pod.labels.get(key) == value]
        return self.answer(200, {"kind": "PodList", "items": pods})

    def get_pods(self, name: str, *_: Any) -> None:
        if name not in self.server.pods:
            return self.answer(404, f"pods {name} not found")
        return self.answer(200, self.server.pods[name].described())

    def get_pods_log(self, name: str, _: Any, query: dict[str, str]) -> None:
        pod = self.server.pods.get(name)
        if pod is None or pod.status["phase"] == "Pending":
            return self.answer(400, f"container {query['container']} in pod {name} is waiting to start")
        assert query["follow"].lower() == query["timestamps"].lower() == "true"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        shown = 0
        while True:
            with pod.changed:
                while len(pod.lines) <= shown and not pod.ended:
                    pod.changed.wait()
                new, ended = pod.lines[shown:], pod.ended
            for line in new:
                shown += 1
                self.wfile.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())
                self.wfile.flush()
                if self.server.log_breaks and shown >= self.server.log_breaks:
                    self.server.log_breaks += 1  # the next connection sees more, or none would ever see the end
                    self.close_connection = True  # in the middle of the answer
                    return None
            if ended and not new:
                self.wfile.write(b"0\r\n\r\n")
                return None

    def do_GET(self) -> None:
        self.handle_request("get")

    def do_POST(self) -> None:
        self.handle_request("create")

    def do_DELETE(self) -> None:
        self.handle_request("delete")


@contextmanager
def trainer() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        for name in list(server.jobs):
            server.remove(name)
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def real_pods(secrets: dict[str, dict[str, str]], folder: Path) -> Behaviour:
    """Run what a TrainJob says, one process for each node, with a folder of its own for what it calls /tmp."""

    def behave(job: Job) -> None:
        spec = job.manifest["spec"]["trainer"]
        port = str(free_port())
        processes, pods = [], []
        for node in range(spec["numNodes"]):
            scratch = folder / f"{job.name}-{node}"
            scratch.mkdir(parents=True)
            env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TMPDIR": str(scratch)}
            for each in spec["env"]:
                if "value" in each:
                    env[each["name"]] = each["value"].replace("/tmp", str(scratch))
                else:
                    source = each["valueFrom"]["secretKeyRef"]
                    if source["key"] in secrets.get(source["name"], {}):
                        env[each["name"]] = secrets[source["name"]][source["key"]]
            env |= {  # as Trainer's plug-in for torch sets them
                "PET_NNODES": str(spec["numNodes"]), "PET_NPROC_PER_NODE": str(spec["numProcPerNode"]),
                "PET_NODE_RANK": str(node), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port,
            }  # fmt: skip
            pod = job.pod(node)
            pods.append(pod)
            process = subprocess.Popen(
                spec["command"], env=env, cwd=scratch, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            processes.append(process)
            threading.Thread(target=_copy, args=(process, pod), daemon=True).start()
        threading.Thread(target=_stop, args=(job, processes), daemon=True).start()
        codes = [process.wait() for process in processes]
        for pod, code in zip(pods, codes, strict=True):
            pod.end(code)
        job.condition("Failed", "FailedJobs", f"exit codes {codes}") if any(codes) else job.condition("Complete")

    return behave


def _copy(process: subprocess.Popen[str], pod: Pod) -> None:
    assert process.stdout
    for line in process.stdout:
        pod.write(line.rstrip("\n"))


def _stop(job: Job, processes: list[subprocess.Popen[str]]) -> None:
    job.gone.wait()
    for process in processes:
        process.terminate()
