"""Following runs: kfp's own client against a server that speaks its API."""

from __future__ import annotations

import pytest

from rsp.pipelines.connection import Cluster
from rsp.pipelines.waiting import wait
from rsp.shared.errors import PipelineError

STEPS = [
    ("download", "SUCCEEDED", "100 tiles\n"),
    ("download", "SUCCEEDED", "50 tiles\n"),
    ("for-loop-2", "SUCCEEDED", ""),
    ("train", "FAILED", ["epoch 1\nout of memory\n", "epoch 1\nepoch 2\nout of memory again\n"]),
    ("deploy", "SKIPPED", ""),
]


@pytest.fixture
def run_id(kfp_server):
    """A run that failed in its fourth step, at the second attempt."""
    run = kfp_server.add("runs", "run_id", {"display_name": "nightly", "created_at": "2026-11-24T03:00:00Z"})
    kfp_server.play(run["run_id"], STEPS, "FAILED", error="a child failed")
    return run["run_id"]


def test_status(kfp_server, rsp, run_id):
    ran = rsp("pipeline", "status", run_id)
    assert ran.code == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f"nightly ({run_id}): failed, 99 s",
        "    download  2 succeeded",
        "    train     failed  30 s",
        "    deploy    skipped  30 s",
        "a child failed",
        f"{kfp_server.url}/#/runs/details/{run_id}",
    ]


def test_a_run_by_name_is_the_latest(kfp_server, rsp, run_id):
    later = kfp_server.add("runs", "run_id", {"display_name": "nightly", "created_at": "2026-11-26T03:00:00Z"})
    later["state"] = "RUNNING"
    ran = rsp("pipeline", "status", "nightly")
    assert ran.code == 0 and later["run_id"] in ran.stdout and "running" in ran.stdout
    ran = rsp("pipeline", "status", "weekly")
    assert ran.code == 2 and "no run 'weekly', neither by id nor by name" in ran.stderr


@pytest.mark.parametrize("own_names", [False, True])
@pytest.mark.parametrize("way", ["v2beta1", "ui", "v1alpha1"])
def test_logs(kfp_server, rsp, run_id, way, own_names):
    """Whatever way to its logs the server offers, and whether it tells pods or nodes only."""
    kfp_server.ways = {way}
    kfp_server.play(run_id, STEPS, "FAILED", own_names=own_names)
    ran = rsp("pipeline", "logs", run_id, "train")
    assert ran.code == 0 and ran.stdout == "epoch 1\nout of memory\nepoch 1\nepoch 2\nout of memory again\n"


def test_logs_of_all_steps(kfp_server, rsp, run_id):
    ran = rsp("pipeline", "logs", "nightly")
    assert ran.code == 0, ran.stderr
    heads = [line for line in ran.stdout.splitlines() if line.startswith("==>")]
    assert [line.split()[1] for line in heads] == ["download", "download", "train", "train", "deploy"]
    assert "(training-x7k2p-retry-system-container-impl-" in heads[2]


def test_logs_that_are_gone(kfp_server, rsp, run_id):
    kfp_server.logs.clear()
    kfp_server.ways = {"ui"}
    for step in ((), ("train",)):
        ran = rsp("pipeline", "logs", run_id, *step)
        assert ran.code == 1 and f"kubectl logs -l pipeline/runid={run_id} -c main" in ran.stderr
    ran = rsp("pipeline", "logs", run_id, "trian")
    assert ran.code == 2 and "no step 'trian'; it has download, train, deploy" in ran.stderr


def test_wait_says_which_step_failed_and_its_last_lines(kfp_server, rsp, run_id):
    ran = rsp("pipeline", "wait", run_id)
    assert ran.code == 1
    assert f"the run nightly ({run_id}) failed in the step train: a child failed" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "    out of memory again"
    kfp_server.logs.clear()
    ran = rsp("pipeline", "wait", run_id)
    assert ran.code == 1 and "failed in the step train" in ran.stderr and "kubectl logs" in ran.stderr


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED"])
def test_wait_ends_with_runs_that_never_succeed(kfp_server, rsp, run_id, state):
    kfp_server.play(run_id, [], state)
    ran = rsp("pipeline", "wait", run_id, "--timeout", "0")
    assert ran.code == 1 and f"was {state.lower()}" in ran.stderr


def test_wait_for_what_is_running(kfp_server, run_id):
    steps = [("cover", "SUCCEEDED", ""), ("train", "RUNNING", "")]
    kfp_server.script = [
        {"steps": steps[:1]},
        {"steps": steps},
        {"steps": [steps[0], ("train", "SUCCEEDED", "")], "state": "SUCCEEDED"},
    ]
    seen = []
    found = wait(run_id, Cluster(), poll=0.01, watch=lambda step: seen.append((step.name, step.state)))
    assert seen == [("cover", "succeeded"), ("train", "running"), ("train", "succeeded")]
    assert found.state == "succeeded"


def test_waiting_outlives_a_restart_of_the_server(kfp_server, run_id):
    kfp_server.play(run_id, [], "RUNNING")
    looks = []

    def away(name):
        looks.append(name)
        return 3 <= len(looks) <= 6

    kfp_server.away = away
    kfp_server.script = [{"steps": []}, {"steps": []}, {"steps": [], "state": "SUCCEEDED"}]
    assert wait(run_id, Cluster(), poll=0.01).state == "succeeded"
    kfp_server.away = lambda name: name.startswith("GET runs")
    with pytest.raises(PipelineError, match="503"):
        wait(run_id, Cluster(), poll=0.01)


def test_wait_has_an_end(kfp_server, rsp, run_id):
    kfp_server.play(run_id, [("train", "RUNNING", "")])
    ran = rsp("pipeline", "wait", run_id, "--timeout", "0")
    assert ran.code == 1 and f"the run nightly ({run_id}) is running after 0 s" in ran.stderr
    assert "train: running" in ran.stderr


def test_submit_and_wait(kfp_server, rsp):
    given = [word for name in ("images", "labels") for word in ("-p", f"{name}=s3://b/{name}")]
    kfp_server.script = [{"steps": [("train", "FAILED", "no\n")], "state": "FAILED"}] * 2
    ran = rsp("pipeline", "submit", "training", *given, "--wait", "--timeout", "60")
    (run,) = kfp_server.kinds["runs"].values()
    assert ran.code == 1 and run["run_id"] in ran.stdout and "failed in the step train" in ran.stderr
    ran = rsp("pipeline", "submit", "training", *given, "--timeout", "60")
    assert ran.code == 2 and "--timeout goes with --wait" in ran.stderr
