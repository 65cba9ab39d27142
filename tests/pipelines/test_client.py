"""Submitting and scheduling: kfp's own client against a server that speaks its API."""

from __future__ import annotations

import json

import pytest

from rsp.pipelines.compiler import PIPELINES
from rsp.pipelines.cron import check_cron
from rsp.pipelines.parameters import CONFIG
from rsp.shared.errors import UsageError
from tests.pipelines.kfp_server import KfpServer

NIGHTLY = "0 0 3 * * *"
QUALITY = ("-p", "images=s3://b/images.pmtiles", "-p", "labels=s3://b/l.pmtiles", "-p", "masks=s3://b/m.pmtiles",
           "-p", f"config={json.dumps(CONFIG)}")  # fmt: skip
TABLES = CONFIG | {"model": {"ts": 64}}
MODEL = f"config={json.dumps(TABLES)}"


def test_submit(kfp_server, rsp):
    ran = rsp("pipeline", "submit", "training", "-p", "images=s3://b/i", "-p", "labels=s3://b/l", "-p", MODEL,
              "-p", "epochs=3", "-p", "gpus=2", "--run-name", "by hand", "--experiment", "roofs",
              "--service-account", "runner")  # fmt: skip
    assert ran.code == 0, ran.stderr
    ((run_id, run),) = kfp_server.kinds["runs"].items()
    assert run_id in ran.stdout and f"{kfp_server.url}/#/runs/details/{run_id}" in ran.stdout
    assert run["display_name"] == "by hand" and run["service_account"] == "runner"
    assert run["runtime_config"]["parameters"] == {
        "images": "s3://b/i", "labels": "s3://b/l", "config": TABLES, "epochs": 3, "gpus": "2"
    }  # fmt: skip
    # Both documents: without the second there is no shared memory.
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "training"
    assert "exec-train" in str(run["pipeline_spec"]["platform_spec"])
    (experiment,) = kfp_server.kinds["experiments"].values()
    assert experiment["display_name"] == "roofs"


def test_the_images_are_those_of_the_code(kfp_server, rsp, monkeypatch):
    monkeypatch.setenv("RSP_IMAGE_REGISTRY", "r.example/x")
    assert rsp("pipeline", "submit", "quality", *QUALITY, "--tag", "2.0.0").code == 0
    (run,) = kfp_server.kinds["runs"].values()
    assert "'r.example/x/rsp-compare:2.0.0'" in str(run["pipeline_spec"])


def test_a_placeholder_is_never_sent(kfp_server, rsp, monkeypatch):
    for tag, code in (("unreleased", 2), ("latest", 2)):
        assert rsp("pipeline", "submit", "quality", *QUALITY, "--tag", tag).code == code
    monkeypatch.delenv("RSP_IMAGE_TAG")
    monkeypatch.setattr("rsp.components.container.checkout_version", lambda: "1.0.dev1+g1234567.d20310101")
    for command in (["submit", "quality"], ["schedule", "quality", "--cron", NIGHTLY]):
        ran = rsp("pipeline", *command, *QUALITY)
        assert ran.code == 1 and "not committed" in ran.stderr
    assert kfp_server.requests == []


def test_new_code_replaces_the_schedule(kfp_server, rsp):
    for tag, word in (("1.0.0", "created"), ("1.0.0", "unchanged"), ("1.0.1", "replaced")):
        ran = rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY, "--tag", tag)
        assert f"quality: {word}" in ran.stdout


def test_scheduling_twice_leaves_one(kfp_server, rsp):
    for word in ("created", "unchanged", "unchanged"):
        ran = rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY)
        assert ran.code == 0 and f"quality: {word}" in ran.stdout, ran.stderr
    (run,) = kfp_server.kinds["recurringruns"].values()
    assert run["trigger"] == {"cron_schedule": {"cron": NIGHTLY}}
    assert (run["mode"], run["max_concurrency"], run["no_catchup"]) == ("ENABLE", 1, True)
    assert run["runtime_config"]["parameters"]["images"] == "s3://b/images.pmtiles"
    version = kfp_server.kinds["versions"][run["pipeline_version_reference"]["pipeline_version_id"]]
    assert version["pipeline_spec"]["pipelineInfo"]["name"] == "quality"
    assert len(kfp_server.kinds["pipelines"]) == 1


def test_a_change_replaces(kfp_server, rsp):
    rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY)
    (first,) = kfp_server.kinds["recurringruns"]
    ran = rsp("pipeline", "schedule", "quality", "--cron", "0 30 4 * * *", *QUALITY)
    assert "quality: replaced" in ran.stdout
    ((second, run),) = kfp_server.kinds["recurringruns"].items()
    assert second != first and run["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    ran = rsp("pipeline", "schedule", "quality", "--cron", "0 30 4 * * *", *QUALITY, "-p", MODEL)
    assert "quality: replaced" in ran.stdout
    (run,) = kfp_server.kinds["recurringruns"].values()
    assert run["runtime_config"]["parameters"]["config"] == TABLES
    # The pipeline is the same: it was uploaded once, and once as a version named by its content.
    assert len(kfp_server.kinds["versions"]) == 2


def test_a_schedule_that_was_switched_off_is_replaced(kfp_server, rsp):
    rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY)
    (run,) = kfp_server.kinds["recurringruns"].values()
    run["mode"] = "DISABLE"
    assert "replaced" in rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY).stdout
    (run,) = kfp_server.kinds["recurringruns"].values()
    assert run["mode"] == "ENABLE"


def test_the_old_schedule_stays_where_the_new_one_cannot_be_made(kfp_server, rsp):
    rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY)
    before = dict(kfp_server.kinds["recurringruns"])
    kfp_server.fail_on = {"POST recurringruns"}
    ran = rsp("pipeline", "schedule", "quality", "--cron", "0 0 4 * * *", *QUALITY)
    assert ran.code == 1 and "500: the database is away" in ran.stderr and "Traceback" not in ran.stderr
    assert kfp_server.kinds["recurringruns"] == before


def test_what_a_broken_call_left_is_cleared_by_the_next(kfp_server, rsp):
    rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY)
    (old,) = kfp_server.kinds["recurringruns"]
    kfp_server.fail_on = {f"DELETE recurringruns/{old}"}
    assert rsp("pipeline", "schedule", "quality", "--cron", "0 0 4 * * *", *QUALITY).code == 1
    assert len(kfp_server.kinds["recurringruns"]) == 2
    kfp_server.fail_on = set()
    assert "unchanged" in rsp("pipeline", "schedule", "quality", "--cron", "0 0 4 * * *", *QUALITY).stdout
    (run,) = kfp_server.kinds["recurringruns"].values()
    assert run["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"


def test_schedules_of_other_names_are_left_alone_and_pages_are_turned(kfp_server, rsp):
    names = [f"night-{number}" for number in range(5)]
    for name in names:
        assert rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, "--name", name, *QUALITY).code == 0
    for name in names:
        ran = rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, "--name", name, *QUALITY)
        assert "unchanged" in ran.stdout
    assert sorted(run["display_name"] for run in kfp_server.kinds["recurringruns"].values()) == names
    ran = rsp("pipeline", "schedule", "quality", "--name", "night-4", "--delete")
    assert ran.code == 0 and "night-4: deleted" in ran.stdout
    assert "absent" in rsp("pipeline", "schedule", "quality", "--name", "night-4", "--delete").stdout
    assert len(kfp_server.kinds["recurringruns"]) == 4


def test_upload(kfp_server, rsp):
    for word in ("created", "unchanged"):
        ran = rsp("pipeline", "upload", "quality", "hello-world")
        assert ran.code == 0, ran.stderr
        assert [line.split()[1] for line in ran.stdout.splitlines()[::2]] == [word, word]
    # The server makes a version of its own with each pipeline; ours is named by its content.
    assert len(kfp_server.kinds["pipelines"]) == 2 and len(kfp_server.kinds["versions"]) == 4
    pipeline = next(each for each in kfp_server.kinds["pipelines"].values() if each["display_name"] == "quality")
    assert f"{kfp_server.url}/#/pipelines/details/{pipeline['pipeline_id']}/version/" in ran.stdout
    # Both documents, with images that a registry can have.
    version = list(kfp_server.kinds["versions"].values())[-1]
    assert version["documents"] == 2 and "rsp-deploy:1.0.0" in str(version["pipeline_spec"])
    ran = rsp("pipeline", "upload", "quality", "--tag", "1.0.1")
    assert "quality: added (quality-" in ran.stdout
    # What `upload` put there is what a schedule takes.
    rsp("pipeline", "schedule", "quality", "--cron", NIGHTLY, *QUALITY, "--tag", "1.0.1")
    assert len(kfp_server.kinds["versions"]) == 5


def test_upload_all(kfp_server, rsp):
    assert rsp("pipeline", "upload", "--all").code == 0
    names = {each["display_name"].replace("-", "_") for each in kfp_server.kinds["pipelines"].values()}
    assert names == set(PIPELINES)
    for wrong in ([], ["quality", "--all"], ["nothing"]):
        ran = rsp("pipeline", "upload", *wrong)
        assert ran.code == 2 and "hello_world, dataset" in ran.stderr


@pytest.mark.parametrize(
    "command", [["submit", "quality", *QUALITY], ["schedule", "quality", "--cron", NIGHTLY, *QUALITY],
                ["upload", "quality"]],
)  # fmt: skip
def test_servers_that_are_too_old(kfp_server, rsp, command):
    for health in ({"tag_name": "2.14.4"}, {"apiServerTagName": "v2.5.0", "apiServerReady": True}):
        kfp_server.health = health
        ran = rsp("pipeline", *command)
        (version,) = [str(value) for value in health.values() if value is not True]
        assert ran.code == 1 and f"is {version}; these pipelines need 2.15 or later" in ran.stderr
        assert not any(kfp_server.kinds.values())
    for health in ({"tag_name": "unknown"}, {}, {"tag_name": "master", "apiServerTagName": "2.5"}):
        kfp_server.health = {**health, "multi_user": False}
        ran = rsp("pipeline", *command)
        assert ran.code == 0 and "warning" in ran.stderr and "does not say its version" in ran.stderr
    kfp_server.health = {"apiServerTagName": "2.15.2", "frontendTagName": "2.5.0"}
    ran = rsp("pipeline", *command)
    assert ran.code == 0 and ran.stderr == ""


def test_a_schedule_says_when_it_runs(kfp_server, rsp):
    for name, cron in (("night", NIGHTLY), ("leap", "0 0 12 29 2 *")):
        ran = rsp("pipeline", "schedule", "quality", "--cron", cron, "--name", name, *QUALITY)
        assert ran.code == 0 and "next runs: " in ran.stdout
        assert ran.stdout.count(" UTC") == 3
    assert "-02-29 12:00:00 UTC" in ran.stdout
    for extra in ({"mode": "DISABLE"}, {"trigger": {"periodic_schedule": {"interval_second": "3600"}}},
                  {"trigger": {"cron_schedule": {"cron": "@every 3h"}}}):  # fmt: skip
        made = dict(next(iter(kfp_server.kinds["recurringruns"].values())))
        kfp_server.add("recurringruns", "recurring_run_id", {**made, "display_name": f"z{len(extra)}", **extra})
    lines = rsp("pipeline", "schedules").stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines if not line.startswith(" ")] == [
        "leap: 0 0 12 29 2 *", f"night: {NIGHTLY}", f"z1: {NIGHTLY}, switched off", "z1: every 3600 s",
        "z1: @every 3h",
    ]  # fmt: skip
    assert sum(line.startswith("    next runs: ") for line in lines) == 3
    assert "next runs: unknown" in lines[-1]
    ran = rsp("pipeline", "schedules", "--experiment", "roofs")
    assert ran.code == 0 and "no schedule in the experiment roofs" in ran.stderr
    # Looking makes nothing.
    assert len(kfp_server.kinds["experiments"]) == 1
    ran = rsp("pipeline", "schedule", "quality", "--cron", "0 0 0 30 2 *", *QUALITY)
    assert ran.code == 2 and "no date meets" in ran.stderr
    assert "quality" not in {each["display_name"] for each in kfp_server.kinds["recurringruns"].values()}


def test_the_token_comes_from_the_environment(monkeypatch, rsp):
    monkeypatch.setenv("RSP_IMAGE_TAG", "1.0.0")
    with KfpServer(token="s3cret") as server:
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong")
        ran = rsp("pipeline", "submit", "quality", *QUALITY, "--host", server.url)
        assert ran.code == 1 and "401" in ran.stderr and "KF_PIPELINES_TOKEN" in ran.stderr
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "s3cret")
        ran = rsp("pipeline", "submit", "quality", *QUALITY, "--host", server.url)
        assert ran.code == 0 and "s3cret" not in ran.stdout + ran.stderr


def test_the_token_of_the_pod(monkeypatch, tmp_path, rsp):
    monkeypatch.setenv("RSP_IMAGE_TAG", "1.0.0")
    (tmp_path / "token").write_text("projected")
    monkeypatch.delenv("KF_PIPELINES_TOKEN", raising=False)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    with KfpServer(token="projected") as server:
        assert rsp("pipeline", "submit", "quality", *QUALITY, "--host", server.url).code == 0


def test_no_server(monkeypatch, rsp):
    monkeypatch.setenv("RSP_IMAGE_TAG", "1.0.0")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    ran = rsp("pipeline", "submit", "quality", *QUALITY)
    assert ran.code == 2 and "KF_PIPELINES_ENDPOINT" in ran.stderr
    ran = rsp("pipeline", "submit", "quality", *QUALITY, "--host", "http://127.0.0.1:9")
    assert ran.code == 1 and "cannot reach KFP at http://127.0.0.1:9" in ran.stderr


def test_wrong_parameters_never_reach_the_server(kfp_server, rsp):
    ran = rsp("pipeline", "submit", "quality", "-p", "images=a")
    assert ran.code == 2 and "labels" in ran.stderr
    assert kfp_server.requests == []


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 3 * * *", r"five fields.*--cron '0 0 3 \* \* \*'"),
        ("0 0 3 * *  * *", "six fields"),
        ("every night", "six fields"),
        ("0 0 24 * * *", "hour.*0 to 23"),
        ("60 0 3 * * *", "second.*0 to 59"),
        ("0 0 3 0 * *", "day of the month.*1 to 31"),
        ("0 0 3 * 13 *", "month.*1 to 12"),
        ("0 0 3 * * 7", "day of the week.*0 to 6"),
        ("0 0 3 * * MON-", "day of the week"),
        ("0 0/0 3 * * *", "minute"),
        ("0 50-10 3 * * *", "minute"),
        ("? 0 3 * * *", "second"),
    ],
)
def test_crons_that_kfp_would_misread(cron, message, rsp):
    ran = rsp("pipeline", "schedule", "quality", "--cron", cron, *QUALITY)
    assert ran.code == 2
    with pytest.raises(UsageError, match=message):
        check_cron(cron)


@pytest.mark.parametrize(
    "cron",
    [NIGHTLY, "0 */15 * * * *", "0 0 9 ? * 2-6", "0 0 9 ? * MON-FRI", "30 0,30 8-18/2 1 JAN,jul *", "@daily"],
)
def test_crons_as_they_should_be(cron):
    assert check_cron(cron) == cron


def test_cron_is_needed(rsp):
    ran = rsp("pipeline", "schedule", "quality", *QUALITY)
    assert ran.code == 2 and "--cron" in ran.stderr
