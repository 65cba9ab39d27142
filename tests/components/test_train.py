"""rsp train: its command line, several processes for real, and its component."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from kfp import dsl

from rsp.components.train.component import train as train_component
from rsp.components.train.history import Log, read_state
from rsp.components.train.launch import launch, read_error, write_error
from rsp.components.train.plan import Plan
from rsp.components.train.tool import train
from rsp.shared.config import load_config, parse_tables
from rsp.shared.errors import ConfigError, PluginError, RspError, TileError, TileSetError, UsageError
from rsp.shared.learning.checkpoint import load_checkpoint, read_card
from rsp.shared.locations import Address
from rsp.shared.tileset import open_reader, tiles_digest
from tests.components.train.test_contract import agrees
from tests.tilesets import CONFIG, make_tileset, squares
from tests.toy import TRAINING, make_config, make_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

CLASSIC = """
[dataset]
path = "{dataset}"

[[channels]]
sub = "images"
bands = [1, 2, 3]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[classes]]
title = "Background"
color = "white"

[[classes]]
title = "Building"
color = "deeppink"

[model]
name = "albunet"
encoder = "tiny"
pretrained = false
loss = "lovasz"
batch_size = 4
tile_size = 64
num_filters = 16
lr = 0.005
data_augmentation = 0.75
decay = 0.0
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "config.toml", lr="0.005")


def test_as_the_readme_writes_it(rsp, toy, tmp_path, monkeypatch):
    """The seed's configuration and flags, and the name of its checkpoint."""
    (tmp_path / "config.toml").write_text(CLASSIC.format(dataset=toy))
    monkeypatch.setenv("RSP_CONFIG", str(tmp_path / "config.toml"))
    out = tmp_path / "pth"
    ran = rsp("train", "--epochs", 1, out)
    assert ran.code == 0 and "Building IoU" in ran.stdout and "Epoch 1/1" in ran.stdout
    assert (out / "checkpoint-00001-of-00001.pth").exists()
    ran = rsp("train", "--epochs", 2, "--resume", "--checkpoint", out / "checkpoint-00001-of-00001.pth", out)
    assert ran.code == 0 and read_card(out / "checkpoint-00002-of-00002.pth").epoch == 2
    ran = rsp("train", "--epochs", 2, "--resume", "--checkpoint", out / "checkpoint-00002-of-00002.pth", out)
    assert ran.code == 2 and "give more than 2" in ran.stderr


def test_flags_take_the_place_of_the_configuration(rsp, toy, tmp_path, config):
    out, report = tmp_path / "out", tmp_path / "report.json"
    flags = ["--batch_size", 3, "--tile_size", 32, "--lr", 0.001, "--loss", "dice", "--model", "segformer",
             "--classes_weights", "1,2.5"]  # fmt: skip
    ran = rsp(
        "train", "--config", config, "--dataset", toy, *flags, "--epochs", 1, "--out", out, "--report", report
    )
    assert ran.code == 0
    assert "3 in a batch" in ran.stdout and "32 px" in ran.stdout and "loss dice" in ran.stdout
    card = read_card(out / "last.safetensors")
    assert (card.nn, card.tile_size) == ("segformer", 32)
    assert [entry.weight for entry in card.classes] == [1, 2.5]
    assert (card.channels[0].value_type, card.channels[0].divisor) == ("uint8", 255)
    assert card.zoom == TRAINING[0].z
    with (
        open_reader(toy / "validation/images.pmtiles") as images,
        open_reader(toy / "validation/labels.pmtiles") as labels,
    ):
        assert card.validation == tiles_digest([images], labels, images.tiles())
    data = json.loads(report.read_text())
    assert data["best_epoch"] == 1 and data["classes"] == ["background", "building"]
    assert np.sum(data["confusion"]) == 6 * 64 * 64 and data["history"][0]["validation"]["iou"] == data["iou"]
    ran = rsp("train", "--config", config, "--dataset", toy, "--bs", 3, "--ts", 32, "--epochs", 1, tmp_path / "o")
    assert ran.code == 0 and "3 in a batch" in ran.stdout and "32 px" in ran.stdout


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--ts", 60], 2, "multiple of 32"),
        (["--bs", 0], 2, "--bs must be at least 1"),
        (["--lr", -1], 2, "--lr above 0"),
        (["--epochs", 0], 2, "--epochs must be at least 1"),
        (["--seed", -1], 2, "--seed must be 0 or more"),
        (["--workers", -1], 2, "--workers 0 or more"),
        (["--device", "tpu"], 2, "unknown device"),
        (["--gpus", 99], 2, "this machine shows"),
        (["--loss", "nothing"], 1, "unknown loss"),
        (["--model", "nothing"], 1, "unknown network"),
        (["--checkpoint", "nothing"], 1, "cannot read the checkpoint nothing"),
        (["--dataset", "nothing"], 1, "no tile set images"),
        (["--config", "nothing"], 1, "no configuration file"),
    ],
)
def test_arguments_that_do_not_fit(rsp, toy, tmp_path, config, flags, code, message):
    ran = rsp("train", "--config", config, "--dataset", toy, tmp_path / "out", *flags)
    assert ran.code == code and message in ran.stderr and "Traceback" not in ran.stderr


def test_no_data_set(tmp_path, config):
    with pytest.raises(UsageError, match="no data set"):
        train(tmp_path / "out", config=config)
    with pytest.raises(ConfigError):
        train(tmp_path / "out", config=tmp_path / "none", dataset=tmp_path)
    with pytest.raises(TileSetError):
        train(tmp_path / "out", config=config, dataset=tmp_path)


def test_help_is_quick_because_it_imports_little():
    code = (
        "import sys; from rsp.shared.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'kfp', 'rasterio', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- several processes ------------------------------------------------------------------------------------------


EPOCHS = 6


def under_torchrun(*arguments):
    """Run the command line in two processes on the CPU, over gloo."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "rsp.shared.cli", "train", "--gpus", "0", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A training of six epochs in two processes that nothing disturbs: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    config, out = make_config(folder / "config.toml", lr="0.005"), folder / "out"
    flags = ["--epochs", EPOCHS, "--bs", 3, "--seed", 5]
    return out, under_torchrun("--config", config, "--dataset", toy, *flags, out)


def test_two_processes_train_and_one_writes(whole):
    out, shown = whole
    assert "3 in a batch on each of 2 x cpu" in shown
    assert shown.count("Epoch 1/6") == 1 and (out / "log").read_text().count("Epoch 1/6") == 1
    assert len(list(out.iterdir())) == 9 and not list(out.glob(".rsp-*"))
    rows = json.loads((out / "history.json").read_text())
    for row in rows:
        # Both shares are in the sums: every validation tile once, every training tile once.
        assert np.sum(row["validation"]["confusion"]) == 6 * 64 * 64
        assert np.sum(row["training"]["confusion"]) == 18 * 64 * 64
    assert rows[-1]["training"]["iou"] > rows[0]["training"]["iou"]
    load_checkpoint(out / "best.safetensors")


def half_known(tile):
    """Labels of which some tiles know little, so that processes have different numbers of pixels to learn from."""
    mask = squares(tile)
    if tile.x % 2:
        mask[:, 5:] = 255
    return mask[:, :, None]


def test_launched_processes_learn_what_one_does_and_bring_back_their_result(tmp_path, capfd):
    """Two with batches of 3 tiles have the losses of one with batches of 6: statistics and losses are over both.

    Two batches are joined for a step, and gradients exchanged after the second of them.
    """
    recipe = "accumulate = 2\nema = 0.5\ncrop = 0\npasses = 1\nhard = 0.4\n"
    recipe += 'precision = "float32"\noptimizer = {name = "SGD", momentum = 0.9}'
    config = make_config(tmp_path / "joined.toml", f"{CONFIG}\n[train]\n{recipe}\n", lr="0.05", loss='"lovasz_ce"')
    toy = make_dataset(tmp_path / "toy", archives=False)
    shutil.rmtree(toy / "training" / "labels")
    make_tileset(toy / "training" / "labels", TRAINING, "png", half_known)
    given = load_config(config)
    given = replace(given, model=replace(given.model, bs=3))
    result = launch(Plan(given, toy, tmp_path / "two", epochs=2, seed=5), "cpu", 2)
    assert "2 x cpu" in capfd.readouterr().out
    one = train(tmp_path / "one", config=config, dataset=toy, epochs=2, bs=6, seed=5, gpus=0)
    first, second = [
        load_checkpoint(tmp_path / name / "last.safetensors")[0].state_dict() for name in ("one", "two")
    ]
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-3)
    rows = json.loads((tmp_path / "two" / "history.json").read_text())
    assert rows == result.history and [row["epoch"] for row in rows] == [1, 2]
    for row, expected in zip(rows, one.history, strict=True):
        for part in ("training", "validation"):
            assert row[part]["loss"] == pytest.approx(expected[part]["loss"], rel=1e-4)
    assert result.training_tiles == 18 and np.sum(result.confusion) == 6 * 64 * 64
    assert result.classes == ["background", "building"]
    assert result.checkpoint == tmp_path / "two" / "best.safetensors"


def test_no_signal_falls_between_a_line_of_the_log_and_its_end(tmp_path, monkeypatch):
    writes = []
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", SimpleNamespace(write=writes.append, flush=lambda: None))
        Log(tmp_path)("Epoch 1/2")
    assert writes[0] == "Epoch 1/2\n" and not any(writes[1:])


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_it_at_once_and_keeps_what_is_finished(toy, tmp_path, config, processes):
    """As Kubernetes ends a pod: a signal to the first process alone, while the second epoch is trained."""
    out = tmp_path / "out"
    if processes == 1:
        command = ["-m", "rsp.shared.cli", "train", "--gpus", "0", "--config", config, "--dataset", toy]
        command += ["--epochs", "500", out]
    else:
        plan = Plan(load_config(config), toy, out, epochs=500).to_json()
        command = ["-c", LAUNCHED, plan]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as running:
        assert any("Epoch 2/500" in line for line in running.stdout)
        running.terminate()
        said = running.stdout.read()
        assert running.wait() == 143
    assert "stopped by SIGTERM: epoch " in said and "the same command with --resume goes on from there" in said
    assert said.strip().splitlines()[-1] in (out / "log").read_text()
    assert not list(out.glob(".rsp-*"))
    state = read_state(out)
    done = state.epoch
    assert done >= 1 and read_card(out / "last.safetensors").epoch == done
    if state.part:
        assert (
            processes == 1
            and f"epoch {done + 1} is kept up to batch {state.part['batches']} of 5, in {out}" in said
        )
    else:
        assert f"epoch {done} is kept in {out}" in said
    if processes == 1:
        again = train(out, config=config, dataset=toy, epochs=done + 1, resume=True, gpus=0)
        assert [row["epoch"] for row in again.history] == list(range(1, done + 2))


def test_one_of_two_processes_is_killed_and_what_is_resumed_is_as_never_killed(
    toy, whole, tmp_path, config, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    given = load_config(config)
    given = replace(given, model=replace(given.model, bs=3))
    plan = Plan(given, toy, tmp_path / "out", epochs=EPOCHS, seed=5)
    command = [sys.executable, "-c", LAUNCHED, plan.to_json()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as running:
        assert any("Epoch 2/6" in line for line in running.stdout)  # and so the first one is kept
        every = psutil.Process(running.pid).children(recursive=True)
        (second,) = (each for each in every if each.environ().get("RANK") == "1")
        second.kill()
        assert "training in 2 processes ended with exit code" in running.stdout.read()
        assert running.wait() == 1
    assert not psutil.wait_procs(every, timeout=10)[1]
    assert 1 <= read_state(plan.out).epoch < EPOCHS
    result = launch(replace(plan, resume=True), "cpu", 2)
    for name in ("last.safetensors", "best.safetensors"):
        assert (plan.out / name).read_bytes() == (whole[0] / name).read_bytes()
    agrees(toy, plan.out, toy / "validation/images.pmtiles", result, tmp_path, "pt2")


LAUNCHED = """
import sys
from rsp.components.train.launch import launch
from rsp.components.train.plan import Plan
from rsp.components.train.signals import terminated
with terminated():
    launch(Plan.from_json(sys.argv[1]), "cpu", 2)
"""


def test_launch_brings_back_the_error(toy, tmp_path, config):
    make_dataset(tmp_path / "toy", archives=False)
    tile = TRAINING[0]
    broken = tmp_path / "toy" / "training" / "images" / f"{tile.z}" / f"{tile.x}" / f"{tile.y}.png"
    broken.write_bytes(b"rubbish")
    plan = Plan(load_config(config), tmp_path / "toy", tmp_path / "out", epochs=1)
    with pytest.raises(TileError, match=f"tile {tile.z}/{tile.x}/{tile.y}: not an image"):
        launch(plan, "cpu", 2)


class CloudError(RspError):
    """An error of a plug-in."""


class ModelError(RspError):
    """Of the name of one of ours."""


def test_b8_errors_of_plug_ins_come_back_under_their_name(tmp_path):
    """Their classes are none of rsp.shared.errors: looking there for them was an AttributeError."""
    for kind in (CloudError, ModelError):
        write_error(tmp_path / "error.json", kind("too many clouds"))
        found = read_error(tmp_path / "error.json")
        assert type(found) is PluginError and str(found).endswith(f"test_train.{kind.__name__}: too many clouds")
    write_error(tmp_path / "error.json", UsageError("wrong"))
    found = read_error(tmp_path / "error.json")
    assert type(found) is UsageError and str(found) == "wrong" and found.exit_code == 2


def test_a_plan_survives_the_way_to_another_process(tmp_path, toy):
    text = CLASSIC.format(dataset=toy) + '[train]\noptimizer = {name = "AdamW", lr = 0.1, betas = [0.9, 0.99]}\n'
    (tmp_path / "config.toml").write_text(text)
    plan = Plan(load_config(tmp_path / "config.toml"), toy, tmp_path / "out", 3, True, tmp_path / "a", 2, 7)
    assert Plan.from_json(plan.to_json()) == plan
    plan = Plan(load_config(make_config(tmp_path / "other.toml")), toy, tmp_path)
    assert Plan.from_json(plan.to_json()) == plan
    far = replace(plan, dataset=Address("b", "data", "0f"), out=Address("b", "out"), checkpoint=Address("b", "c"))
    far.config = replace(plan.config, dataset=Address("b", "of the configuration"))
    assert Plan.from_json(far.to_json()) == far


# --- the component ----------------------------------------------------------------------------------------------


def test_component(run_component, toy):
    sets = {f"{part}_{kind}": toy / part / f"{kind}.pmtiles" for part in ("training", "validation")
            for kind in ("images", "labels")}  # fmt: skip
    text = CONFIG.replace("lr = 0.001", "lr = 0.005").replace('"building"', '"<b>roof</b>"')
    step = run_component(train_component, sets, config=parse_tables(text), epochs=5)
    checkpoint = step.path("checkpoint")
    assert checkpoint.suffix == ".safetensors" and read_card(checkpoint).epochs == 5
    load_checkpoint(checkpoint)
    metrics = step.artifacts["metrics"]["metadata"]
    assert set(metrics) == {"iou", "miou", "mcc", "loss"} and metrics["iou"] > 0.85
    matrix = step.artifacts["confusion"]["metadata"]["confusionMatrix"]
    assert [row["displayName"] for row in matrix["annotationSpecs"]] == ["background", "<b>roof</b>"]
    assert sum(sum(row["row"]) for row in matrix["rows"]) == 6 * 64 * 64
    assert step.artifacts["checkpoint"]["metadata"]["rsp_kind"] == "checkpoint"
    assert step.artifacts["checkpoint"]["metadata"]["training_tiles"] == 18
    page = step.path("history").read_text()
    assert "Validation sees tiles as rsp predict does" in page
    assert (
        page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    )
    assert "<b>roof" not in page and "&lt;b&gt;roof" in page
    for name in ("metrics", "confusion"):
        assert step.path(name).exists()  # else KFP's cache never hits
    assert sorted(path.name for path in checkpoint.parent.iterdir() if path.name.startswith(".")) == []
    # What five epochs have learnt is there after one more that starts from them.
    tuned = run_component(train_component, sets, config=parse_tables(text), epochs=1, start_at=str(checkpoint))
    assert tuned.artifacts["metrics"]["metadata"]["iou"] > 0.85


def test_component_names_the_set_that_is_wrong(run_component, toy, tmp_path):
    sets = {f"{part}_{kind}": toy / part / f"{kind}.pmtiles" for part in ("training", "validation")
            for kind in ("images", "labels")}  # fmt: skip
    (tmp_path / "bad.pmtiles").write_bytes(b"PMTiles\x03")
    with pytest.raises(RuntimeError):
        run_component(
            train_component, {**sets, "training_labels": tmp_path / "bad.pmtiles"}, config=parse_tables(CONFIG)
        )


SETS = ("training_images", "training_labels", "validation_images", "validation_labels")


def test_component_asks_for_what_pipelines_give():
    spec = train_component.component_spec
    assert set(spec.inputs) == {
        *SETS, *(f"{name}_at" for name in SETS), "config", "config_uri", "epochs", "gpus", "seed",
        "training_weights", "training_weights_at",
        "nodes", "node_gpus", "accelerator", "runtime", "data_root", "refresh", "start", "start_at",
    }  # fmt: skip
    assert {name: output.type for name, output in spec.outputs.items()} == {
        "checkpoint": "system.Model@0.0.1", "metrics": "system.Metrics@0.0.1",
        "confusion": "system.ClassificationMetrics@0.0.1", "history": "system.HTML@0.0.1",
    }  # fmt: skip
    assert dsl.Model.schema_title == "system.Model"
