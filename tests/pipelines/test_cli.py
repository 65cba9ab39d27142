"""rsp pipeline: list, compile, run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rsp.pipelines.commands import read_parameters
from rsp.pipelines.compiler import PIPELINES, check_parameters, compile_pipeline, parameters
from rsp.pipelines.parameters import CONFIG as TABLES
from rsp.shared.errors import ConfigError, UsageError
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise, squares


def test_list_needs_no_kfp(rsp, rsp_process):
    import subprocess
    import sys

    code = (
        "import sys; from rsp.shared.cli import main\n"
        "main(['pipeline', 'list'])\n"
        "print(sorted({'kfp', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == list(PIPELINES)
    assert "    zoom [18]: Zoom of the tiles." in lines
    assert rsp("pipeline", "list", "--names").stdout.split() == list(PIPELINES)


def test_compile_one(tmp_path, rsp):
    out = tmp_path / "folder" / "q.yaml"
    ran = rsp("pipeline", "compile", "quality", "--out", out, "--tag", "1.2.3")
    assert ran.code == 0 and ran.stdout.strip() == str(out)
    assert out.read_text() == compile_pipeline("quality", "1.2.3")
    ran = rsp("pipeline", "compile", "quality", "--out", out, "--tag", "latest")
    assert ran.code == 2 and "moves from build to build" in ran.stderr


def test_compiling_code_that_no_image_can_hold_says_so(tmp_path, rsp, monkeypatch):
    monkeypatch.delenv("RSP_IMAGE_TAG", raising=False)
    monkeypatch.setattr("rsp.components.container.checkout_version", lambda: "1.0.dev1+g1234567.d20310101")
    out = tmp_path / "q.yaml"
    ran = rsp("pipeline", "compile", "quality", "--out", out)
    assert ran.code == 0 and "not committed" in ran.stderr
    assert out.read_text() == compile_pipeline("quality")


def test_compile_with_another_parallelism(tmp_path, rsp, kfp_server):
    out = tmp_path / "p.yaml"
    assert rsp("pipeline", "compile", "prediction", "--out", out, "--parallelism", "9").code == 0
    assert "parallelismLimit: 9\n" in out.read_text()
    for command in (("compile", "--all", tmp_path), ("upload", "--all")):
        ran = rsp("pipeline", *command, "--parallelism", "9")
        assert ran.code == 2 and "--parallelism goes with the name of one pipeline" in ran.stderr
    ran = rsp("pipeline", "upload", "prediction", "--parallelism", "9")
    assert ran.code == 0 and "prediction: created" in ran.stdout
    ran = rsp("pipeline", "upload", "quality", "--parallelism", "9")
    assert ran.code == 2 and "works in blocks, as prediction" in ran.stderr


def test_compile_a_manifest(tmp_path, rsp):
    out = tmp_path / "q.yaml"
    options = ("--manifest", "--namespace", "team", "--out", out, "--tag", "1.0")
    assert rsp("pipeline", "compile", "quality", *options).code == 0
    kinds = [document["kind"] for document in yaml.safe_load_all(out.read_text())]
    assert kinds == ["Pipeline", "PipelineVersion"]


def test_unknown_names(rsp):
    for command in (["compile"], ["run"], ["submit"], ["schedule", "--delete"]):
        ran = rsp("pipeline", command[0], "nothing", *command[1:])
        assert ran.code == 2 and "hello_world, dataset" in ran.stderr


def test_compile_needs_a_name(rsp):
    assert rsp("pipeline", "compile").code == 2
    assert rsp("pipeline").code == 2


def test_parameters_from_files(tmp_path):
    (tmp_path / "config.toml").write_text("[model]\nts = 64\n")
    (tmp_path / "run.toml").write_text(f'epochs = 3\nconfig = "@{tmp_path}/config.toml"\nseed = 1\n')
    (tmp_path / "run.json").write_text('{"epochs": 4}')
    assert read_parameters(["seed=2", "url=http://x/?a=b"], tmp_path / "run.toml") == {
        "epochs": 3, "config": "[model]\nts = 64\n", "seed": "2", "url": "http://x/?a=b"
    }  # fmt: skip
    assert read_parameters([], tmp_path / "run.json") == {"epochs": 4}


@pytest.mark.parametrize(
    ("given", "file", "message"),
    [
        (["epochs"], None, "KEY=VALUE"),
        (["=3"], None, "KEY=VALUE"),
        (["config=@nothing.toml"], None, "parameter config"),
        ([], "no.toml", "no.toml"),
        ([], "bad.toml", "bad.toml"),
        ([], "list.json", "must be a table"),
    ],
)
def test_parameters_that_cannot_be_read(tmp_path, given, file, message):
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(UsageError, match=message):
        read_parameters(given, tmp_path / file if file else None)


def test_types_of_parameters():
    text = compile_pipeline("training")
    base = {"images": "i", "labels": "l", "config": TABLES | {"model": {"ts": 64.0}}}
    toml = '[[channels]]\nname = "images"\nbands = [1, 2, 3]\n[[classes]]\ntitle = "background"\ncolor = "white"\n'
    toml += '[[classes]]\ntitle = "building"\ncolor = "deeppink"\n[model]\nts = 64.0\n'
    given = {**base, "epochs": "3", "gpus": 2, "seed": 4.0}
    for config in (base["config"], toml, json.dumps(base["config"])):
        found = check_parameters(text, {**given, "config": config})
        assert found == {**base, "epochs": 3, "gpus": "2", "seed": 4}
    wrong = (("epochs", "many"), ("epochs", 1.5), ("epochs", True), ("images", [1]), ("config", "c"))
    for name, value in wrong:
        with pytest.raises(UsageError, match=f"the parameter {name} is a"):
            check_parameters(text, {**base, name: value})


@pytest.mark.parametrize(
    ("pipeline", "changes", "given", "message"),
    [
        ("dataset", {"train": {"bs": 0}}, {}, r"the parameter config: \[train\]: bs"),
        ("training", {"channels": [{"name": "a", "bands": [1]}, {"name": "b", "bands": [1]}]}, {}, "channel 'b'"),
        ("training", {"train": {"weights": "near"}}, {}, "weights: 'near': no weights of pixels were given"),
        (
            "training",
            {},
            {"weights": "w"},
            "weights of pixels were given, and the configuration does not use them",
        ),
        (
            "hello_world",
            {"train": {"weights": "near"}},
            {},
            "the pipeline `training`; no other pipeline takes them",
        ),
    ],
)
def test_a_configuration_is_checked_before_a_run_begins(pipeline, changes, given, message):
    text = compile_pipeline(pipeline)
    needed = {name: "a" for name, parameter in parameters(text).items() if parameter.required}
    with pytest.raises(ConfigError, match=message):
        check_parameters(text, {**needed, **given, "config": TABLES | changes})
    # Where it is elsewhere, the steps read it.
    elsewhere = {**needed, **given, "config_uri": "s3://bucket/config.toml"}
    assert check_parameters(text, elsewhere) == elsewhere


def test_weights_that_a_pipeline_is_given_and_uses():
    values = {"images": "i", "labels": "l", "weights": "w", "config": TABLES | {"train": {"weights": "near"}}}
    assert check_parameters(compile_pipeline("training"), values) == values
    # Prediction and the making of data sets train nothing.
    others = {"source": "s", "config": values["config"]}
    assert check_parameters(compile_pipeline("dataset"), others) == others


def test_run_says_what_is_missing(tmp_path, rsp):
    ran = rsp("pipeline", "run", "quality", "--local", "--root", tmp_path, "-p", "images=x")
    assert ran.code == 2 and "-p labels=..." in ran.stderr


def test_a_local_run_ends_with_its_numbers(tmp_path, rsp):
    """D6: it printed the paths of empty files."""
    (tmp_path / "config.toml").write_text(CONFIG)
    for name, draw in (("images", noise), ("labels", squares), ("masks", squares)):
        make_tileset(tmp_path / name, draw=draw)
    given = [f"{name}={tmp_path / name}" for name in ("images", "labels", "masks")]
    given.append(f"config=@{tmp_path / 'config.toml'}")
    options = [word for pair in given for word in ("-p", pair)]
    ran = rsp("pipeline", "run", "quality", "--root", tmp_path / "runs", *options)
    assert ran.code == 0, ran.stderr
    paths, _, numbers = ran.stdout.partition("compare.confusion (")
    shown = {Path(line.split(": ")[1]) for line in paths.splitlines()}
    pages = {"map.html", "side_by_side.html", "page.html"}
    lists = {"listing.geojson", "cover.csv", "tiles.csv", "table.parquet", "evaluation.json"}
    assert {path.name for path in shown} == {*pages, *lists, "run.log"}
    # Masks that are the labels leave nothing to review.
    assert {path.name for path in shown if not path.stat().st_size} == {"cover.csv"}
    numbers, _, more = numbers.partition("evaluate.confusion (")
    matrix, _, metrics = numbers.partition("compare.metrics:\n")
    found = sum(int(squares(tile).sum()) for tile in BLOCK)
    assert [line.split() for line in matrix.splitlines()[1:]] == [
        ["background", "building"],
        ["background", f"{64 * 64 * len(BLOCK) - found:,}", "0"],
        ["building", "0", f"{found:,}"],
    ]
    values = dict(line.split() for line in metrics.splitlines())
    assert values["iou"] == values["iou_building"] == "1.0000"
    matrix, _, metrics = more.partition("evaluate.metrics:\n")
    values = dict(line.split() for line in metrics.splitlines())
    assert values["boundary_iou"] == values["iou"] == "1.0000" and f"{found:,}" in matrix
