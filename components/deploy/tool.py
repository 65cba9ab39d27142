"""Deploy an exported model: put it into the release store as what is wanted, and wait until the servers serve it.

rsp deploy --model model.pt2 --golden validation/images --store models --name roofs
rsp deploy --model model.pt2 --store s3://bucket/models --name roofs --status http://rsp-serving-pods:8080/status
rsp deploy --store s3://bucket/models --list
rsp deploy --store s3://bucket/models --name roofs --rollback
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rsp.shared.arguments import add_trust_model, bounded
from rsp.shared.claims import FOLDER, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location, on_disk
from rsp.shared.report import Result
from rsp.shared.storage import open_storage

NAME = "rsp"
KEEP = 5
TIMEOUT = 300.0


@dataclass(kw_only=True)
class DeployResult(Result):
    """What `deploy` did.

    Attributes:
        version: The version that is wanted now.
        replaced: The version that was wanted before; empty where there was none, or nothing was changed.
        changed: Whether the pointer was moved: not where this very version was wanted already.
        endpoint: Where tiles are predicted; empty where no server was named.
        replicas: The servers that serve it, of those that were asked.
        removed: Versions that were deleted, since `keep` newer ones are there.
        seconds: How long each step took.
    """

    version: str
    replaced: str
    changed: bool
    endpoint: str
    replicas: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class ListResult(Result):
    """What is in a release store.

    Attributes:
        store: Its address.
        models: For each name its pointer and its releases.
    """

    store: str
    models: dict[str, dict[str, Any]]


def deploy(
    model: Location | None = None,
    *,
    store: str,
    name: str = "",
    version: str = "",
    checkpoint: Location | None = None,
    golden: Location | None = None,
    verdict: Location | None = None,
    status: list[str] | None = None,
    endpoint: str = "",
    keep: int = KEEP,
    timeout: float = TIMEOUT,
    single_writer: bool = False,
    force: bool = False,
    trust_model: bool = False,
    listing: bool = False,
    rollback: str | None = None,
) -> DeployResult | ListResult:
    """Make a model the one that is wanted under a name, list what there is, or go back to an earlier one.

    The model goes into the release store together with its checkpoint, its card and golden tiles with their
    masks; then the pointer of the name is moved to it, unless somebody else has moved it meanwhile. Servers follow
    the pointer by themselves: each compares its own masks with the golden ones before it answers with a new model,
    and keeps the old one otherwise. With `status` this waits for all of them, and moves the pointer back where one
    cannot. Killed at any moment, it leaves the old or the new model serving. The same model again changes nothing.

    Credentials of an S3 server come from the environment; a token for the status from RSP_TORCHSERVE_TOKEN.

    Args:
        model: An exported model, or a checkpoint.
        store: The release store: a folder, or s3://bucket/prefix.
        name: Name of the model in the URLs; `rsp` where empty.
        version: Its version; 8 digits of its SHA-256 where empty, so that equal models are one version.
        checkpoint: The checkpoint that the model was exported from, to be kept with it.
        golden: Tile set whose first tiles servers have to answer right; noise if None.
        verdict: What a judge has found about this very model, as JSON: it is deployed only if the verdict says so
            and what is wanted now is what it was measured against. The IoUs that both models recorded do not count
            then, and the reason of the verdict stands in the history.
        status: URL of the status of each server; a host name that resolves to several addresses stands for all of
            them. Without any nobody is waited for.
        endpoint: URL of the server, for the result; by default that of the first status.
        keep: How many releases of the history stay in the store. What is wanted and what was before always stay.
        timeout: Seconds until every server must serve it.
        single_writer: Use a store whose server ignores the conditions of a write. Only for who knows that nobody
            else deploys at the same time.
        force: Deploy a model whose recorded IoU on the same validation tiles is lower than that of the current
            release, or whose classes, bands, values or tile size are others.
        trust_model: Load an exported model even where it could run any code: only for files of your own. Servers
            refuse it all the same, unless RSP_TRUST_MODEL=1 is set where they run.
        listing: List the releases of a name (of all names where it is empty) instead.
        rollback: Go back to this version instead; where empty, to the one before.

    Raises:
        UsageError: arguments that cannot be meant.
        ModelError: the file is not a model of ours, or does not fit the golden tiles.
        ReleaseError: the version is another model, there is no such version, or the verdict cannot be read.
        ServingError: a step back, a verdict against it or about another model, a server that refuses, or not all
            in time; says what is wanted now.
        ConflictError: somebody else deploys at the same time, or has deployed since the verdict.
        StorageError: the store cannot be reached, or refuses.
    """
    from rsp.components.deploy.listing import models_of, table
    from rsp.components.deploy.replicas import Replicas
    from rsp.components.deploy.verdict import read_verdict
    from rsp.components.deploy.work import Deployment
    from rsp.serving.manifest import check_name
    from rsp.serving.releases import ReleaseStore

    if not store:
        raise UsageError("--store must be a folder, or s3://bucket/prefix")
    local = [] if "://" in store else [Output(location(store), FOLDER)]
    check_paths(local, [golden], inside=[model, checkpoint, verdict])
    asked = {"--model": model is not None, "--list": listing, "--rollback": rollback is not None}
    if sum(asked.values()) != 1:
        got = " and ".join(flag for flag, given in asked.items() if given) or "none of them"
        raise UsageError(f"give one of --model, --list and --rollback, got {got}")
    if verdict is not None and model is None:
        raise UsageError("--verdict is about a --model, which is missing")
    if verdict is not None and force:
        raise UsageError("--verdict and --force contradict each other: give one of them")
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, got {keep}")
    releases = ReleaseStore(open_storage(store), single_writer=single_writer)
    if listing:
        found = models_of(releases, name)
        print(table(found), flush=True)
        return ListResult(store=releases.address, models=found)
    name = check_name("name", name or NAME)
    judged = None if verdict is None else read_verdict(verdict)
    work = Deployment(releases, name, Replicas(status or [], name), timeout)
    replaced = "" if work.before is None else work.before.version or ""
    if model is not None:
        with on_disk(model) as file, nullcontext() if checkpoint is None else on_disk(checkpoint) as kept:
            wanted = work.publish(file, version, kept, golden, force=force, trust=trust_model, verdict=judged)
        reason = "deployed" if judged is None else judged.reason
    else:
        wanted = work.earlier(rollback or "")
        reason = f"rolled back from {replaced or 'nothing'}"
    changed, replicas = work.switch(wanted, reason)
    removed = work.prune(keep) if changed else []
    return DeployResult(
        version=wanted,
        replaced=replaced if changed else "",
        changed=changed,
        endpoint=_endpoint(endpoint, status or [], name),
        replicas=[replica.title for replica in replicas],
        removed=removed,
        seconds=work.seconds,
    )


def _endpoint(endpoint: str, status: list[str], name: str) -> str:
    """Return where tiles are predicted: at the server that is named, else at the first that has a status."""
    if not endpoint and status:
        parts = urlsplit(status[0])
        endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    base = endpoint.partition("/predictions/")[0].rstrip("/")
    return f"{base}/predictions/{name}" if base else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp deploy`."""
    parser.add_argument("--model", type=location, help="exported model, or checkpoint, to deploy")
    parser.add_argument(
        "--store", required=True, metavar="STORE", help="release store: a folder, or s3://bucket/prefix"
    )
    parser.add_argument(
        "--name", default="", help="name of the model in the URLs (default: rsp; for --list all names)"
    )
    parser.add_argument("--version", default="", help="its version (default: 8 digits of its SHA-256)")
    parser.add_argument(
        "--checkpoint", type=location, metavar="FILE", help="what the model was exported from, to be kept with it"
    )
    parser.add_argument(
        "--golden", type=location, metavar="TILES",
        help="tile set whose first tiles servers have to answer right (default: noise)",
    )  # fmt: skip
    parser.add_argument(
        "--verdict", type=location, metavar="FILE",
        help="JSON of a judge: deploy only what it lets through, against what is wanted now (default: compare the "
        "IoUs that both models recorded)",
    )  # fmt: skip
    parser.add_argument(
        "--status", action="append", metavar="URL",
        help="status of a server to wait for, as http://127.0.0.1:8080/status; repeatable; a host name with "
        "several addresses means all of them (default: wait for nobody)",
    )  # fmt: skip
    parser.add_argument(
        "--endpoint", default="", metavar="URL", help="URL of the server, for the report (default: from --status)"
    )
    parser.add_argument(
        "--keep", type=int, default=KEEP, metavar="N",
        help=f"releases that stay in the store (default: {KEEP}); the current one and the one before always do",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=bounded(float, 0, 86400), default=TIMEOUT, metavar="SECONDS",
        help=f"until all servers must serve it; then the pointer moves back (default: {TIMEOUT:g})",
    )  # fmt: skip
    parser.add_argument(
        "--single_writer", action="store_true",
        help="use a store whose server ignores the conditions of a write: only if nobody else deploys there",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="deploy a model that did worse on the same validation tiles, or has other classes, bands, values or "
        "tile size",
    )  # fmt: skip
    parser.add_argument(
        "--list", dest="listing", action="store_true", help="list what is in the store instead of deploying"
    )
    parser.add_argument(
        "--rollback", nargs="?", const="", metavar="VERSION",
        help="go back to this version, or to the one before, instead of deploying",
    )  # fmt: skip
    add_trust_model(parser)
