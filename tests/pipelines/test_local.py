"""Pipelines on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsp.pipelines.local import LocalRun, run_local
from rsp.shared.errors import PipelineError, UsageError
from tests.pipelines import toys


def test_outputs_metrics_seconds_and_log(tmp_path):
    seen = []
    run = run_local(
        toys.plain, {"text": "abc", "numbers": "[1, 4]"}, tmp_path, watch=lambda *event: seen.append(event)
    )
    assert set(run.steps) == {"length", "measure", "leave-temporary"} and run.skipped == []
    assert run.path("measure", "data").read_text() == "abc"
    assert run.metrics("measure") == {"iou": 0.5}
    assert run.steps["length"].parameters == {"Output": 3}
    assert 0 < run.steps["measure"].seconds < run.seconds
    assert [name for name, seconds in seen if seconds is None] == list(run.steps)
    assert [name for name, seconds in seen if seconds] == list(run.steps)
    assert "measuring abc" in run.log.read_text()
    assert json.loads((run.folder / "run.json").read_text())["steps"]["measure"]["seconds"] > 0
    # What kfp and the steps leave behind in the temporary folder is gone.
    assert not Path(run.steps["leave-temporary"].parameters["Output"]).exists()
    assert [path.name for path in tmp_path.iterdir()] == [run.folder.name]


def test_a_condition_that_is_false_skips(tmp_path):
    run = run_local(toys.plain, {"text": "abcd"}, tmp_path)
    assert set(run.steps) == {"length", "measure"} and run.skipped == ["leave-temporary"]
    assert run.steps["length"].parameters == {"Output": 4}


@pytest.mark.parametrize(
    ("text", "shown"), [("", "nothing NOTHING"), ("second", "other OTHER"), ("this", "this THIS")]
)
def test_the_artifact_of_the_branch_that_ran(tmp_path, text, shown):
    """kfp 2.17 refuses `dsl.OneOf` of artifacts on this machine."""
    run = run_local(toys.choosing, {"text": text}, tmp_path)
    assert run.steps["show"].parameters == {"Output": shown}


def test_a_failure_names_its_step_and_shows_its_log(tmp_path):
    with pytest.raises(PipelineError, match="the step fail failed: ValueError: this is wrong") as caught:
        run_local(toys.failing, {}, tmp_path)
    assert str(tmp_path / "failing-1" / "run.log") in str(caught.value)
    assert len(str(caught.value).splitlines()) < 32


def test_a_step_that_is_tried_again(tmp_path):
    (tmp_path / "marks").mkdir()
    run = run_local(toys.retrying, {"folder": str(tmp_path / "marks")}, tmp_path / "root")
    assert run.steps["flaky"].ok and run.steps["flaky"].parameters == {"Output": 2}


def test_a_second_run_has_a_folder_of_its_own(tmp_path):
    runs = [run_local(toys.plain, {"text": text}, tmp_path) for text in ("a", "b")]
    assert [run.folder.name for run in runs] == ["plain-1", "plain-2"]
    assert [run.path("measure", "data").read_text() for run in runs] == ["a", "b"]


def test_a_run_is_read_back(tmp_path):
    run = run_local(toys.plain, {"text": "abc"}, tmp_path)
    again = LocalRun.load(run.folder)
    assert again.as_dict() == run.as_dict() and again.metrics("measure") == run.metrics("measure")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing: -p text="),
        ({"text": "a", "texts": "b"}, "no parameter 'texts'; it has text, numbers"),
        ({"text": "a", "numbers": "one"}, "numbers is a list"),
        ({"text": "a", "numbers": {"a": 1}}, "numbers is a list"),
        ({"text": "python3.11"}, "text holds the word `python3`"),
    ],
)
def test_parameters_that_cannot_be_meant(tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        run_local(toys.plain, values, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_kfp_would_rewrite(tmp_path):
    with pytest.raises(UsageError, match="root holds the word `python3`"):
        run_local(toys.plain, {"text": "a"}, tmp_path / "python3-runs")


def test_an_interrupt_leaves_no_process(tmp_path):
    import subprocess

    def interrupt(step, seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(toys.plain, {"text": str(tmp_path)}, tmp_path / "root", watch=interrupt)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running
