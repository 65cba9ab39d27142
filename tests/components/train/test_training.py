"""Training: that it learns, the same each time, whole after an interruption, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsp.components.train import optimise, processes
from rsp.components.train.history import read_state
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World, choose
from rsp.components.train.training import Trainer, train_model
from rsp.shared.config import load_config
from rsp.shared.errors import ConfigError, ModelError, PluginError, StorageError, TileError, UsageError
from rsp.shared.images import decode_mask
from rsp.shared.learning.checkpoint import load_checkpoint, read_card
from rsp.shared.learning.models.norms import has_batch_norm
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.metrics import confusion, foreground_iou, miou
from rsp.shared.tileset import open_reader, open_writer
from tests.components.train import crashes
from tests.tilesets import CONFIG, make_tileset, squares
from tests.toy import TRAINING, VALIDATION, make_config, make_dataset, photo

CPU = World(torch.device("cpu"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config(make_config(tmp_path_factory.mktemp("config") / "config.toml", lr="0.005"))


def fit(config, toy, out, *, model=None, recipe=None, **options):
    if model:
        config = replace(config, model=replace(config.model, **model))
    if recipe:
        config = replace(config, recipe=replace(config.recipe, **recipe))
    return train_model(Plan(config, toy, out, **options), CPU)


def weights(path):
    return load_checkpoint(path)[0].state_dict()


def same(one, other):
    one, other = weights(one), weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(config, toy, tmp_path_factory):
    """A whole training of six epochs, and what it returned."""
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, fit(config, toy, out, epochs=6)


def test_it_learns(trained):
    _, outcome = trained
    assert outcome.iou > 0.9 and outcome.miou > 0.95 and outcome.mcc > 0.9
    assert (outcome.training_tiles, outcome.validation_tiles) == (18, 6)
    assert sum(map(sum, outcome.confusion)) == 6 * 64 * 64  # every validation pixel, once (bug 19)


def windows(toy, card):
    """Yield the validation tiles as prediction sees them."""
    with open_reader(toy / "validation" / "images.pmtiles") as reader:
        images = TileImages({"images": reader}, card.channels)
        for tile in VALIDATION:
            yield tile, read_window(images, tile, card.overlap)


def test_bug_19_the_loss_is_the_mean_over_tiles(trained, config, toy):
    """Not the sum of the means of batches divided by the number of samples."""
    out, _ = trained
    row = json.loads((out / "history.json").read_text())[-1]
    from rsp.components.train.losses import build_loss, class_weights
    from rsp.shared.learning.inference import load_predictor

    predictor = load_predictor(out / "last.safetensors", device="cpu")
    loss = build_loss("lovasz", class_weights(config.classes))
    values = []
    for tile, window in windows(toy, predictor.card):
        (logits,) = predictor.logits([window], predictor.card.overlap)
        values.append(loss(torch.from_numpy(logits)[None], torch.from_numpy(squares(tile))[None].long()).item())
    assert row["validation"]["loss"] == pytest.approx(np.mean(values), rel=1e-6)


def test_bug_20_metrics_are_those_of_the_masks(trained, toy):
    """The confusion matrix of the best epoch is that of the masks which its checkpoint predicts."""
    from rsp.shared.learning.inference import load_predictor

    out, outcome = trained
    predictor = load_predictor(out / "best.safetensors", device="cpu")
    matrix = np.zeros((2, 2), np.int64)
    labels = open_reader(toy / "validation" / "labels.pmtiles")
    for tile, window in windows(toy, predictor.card):
        (mask,) = predictor.masks([window], predictor.card.overlap)
        matrix += confusion(decode_mask(labels.read(tile)), mask, 2)
    assert matrix.tolist() == outcome.confusion
    assert (outcome.iou, outcome.miou) == (foreground_iou(matrix), miou(matrix))


def test_bug_22_what_is_left_behind(trained):
    out, outcome = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors", "best.safetensors.json", "checkpoint-00006-of-00006.pth", "history.csv",
        "history.json", "last.safetensors", "last.safetensors.json", "log", "state.pt",
    ]  # fmt: skip
    link = out / "checkpoint-00006-of-00006.pth"
    assert str(link.readlink()) == "last.safetensors" and read_card(link).epoch == 6
    best = read_card(out / "best.safetensors")
    assert best.epoch == outcome.best_epoch and best.metrics["iou"] == outcome.iou and outcome.checkpoint.exists()
    assert (best.nn, best.encoder, best.tile_size, best.overlap, best.epochs) == ("unet", "tiny", 64, 16, 6)
    assert best.versions["torch"] == torch.__version__ or best.versions["torch"] in torch.__version__
    assert json.loads((out / "best.safetensors.json").read_text())["uuid"] == best.uuid


def test_history_and_log(trained):
    out, outcome = trained
    rows = json.loads((out / "history.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows == outcome.history
    ious = [row["validation"]["iou"] for row in rows]
    assert outcome.best_epoch == 1 + int(np.argmax(ious)) and outcome.iou == max(ious)
    with (out / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["validation_iou"]) for row in table] == ious
    assert float(table[2]["training_loss"]) == rows[2]["training"]["loss"]
    assert all(0 < row["waiting"] < 1 for row in rows) and float(table[2]["waiting"]) == rows[2]["waiting"]
    log = (out / "log").read_text()
    assert (
        log.count("Epoch ") == log.count("waiting for") == 6
        and "building IoU" in log
        and "MCC" in log
        and "mIoU" in log
    )


def test_the_same_seed_gives_the_same_weights(config, toy, tmp_path):
    for name, seed, workers in (("a", 3, 0), ("b", 3, 2), ("c", 4, 0)):
        recipe = {"profile": 2 * (name == "b")}  # looking on changes nothing
        fit(config, toy, tmp_path / name, epochs=2, seed=seed, workers=workers, recipe=recipe)
    assert "Steps 3 to 4 on cpu" in (tmp_path / "b" / "profile.txt").read_text()
    assert not (tmp_path / "a" / "profile.txt").exists()
    assert same(tmp_path / "a" / "last.safetensors", tmp_path / "b" / "last.safetensors")
    assert not same(tmp_path / "a" / "last.safetensors", tmp_path / "c" / "last.safetensors")
    first, second = [(tmp_path / name / "last.safetensors").read_bytes() for name in "ab"]
    assert first == second  # the card included


def test_what_a_training_computes_in(config, toy, tmp_path, monkeypatch):
    """`auto` takes bfloat16 where the processor has it; others emulate it here."""

    def trained_in(name, quick, epochs=2, **options):
        found = {"avx512_bf16": quick, "cpu_name": "Old"}
        with monkeypatch.context() as patch:
            patch.setattr(torch.cpu, "get_capabilities", lambda: found)
            outcome = fit(config, toy, tmp_path / name, epochs=epochs, **options)
        return outcome, read_card(tmp_path / name / "last.safetensors").precision

    quick, precision = trained_in("quick", True)
    assert precision == "bfloat16" and "1 x cpu in bfloat16" in (tmp_path / "quick" / "log").read_text()
    exact, precision = trained_in("exact", False)
    assert precision == "float32" and "1 x cpu in float32" in (tmp_path / "exact" / "log").read_text()
    _, precision = trained_in("named", True, recipe={"precision": "float32"})
    assert precision == "float32" and same(
        tmp_path / "named" / "last.safetensors", tmp_path / "exact" / "last.safetensors"
    )
    losses = [each.history[-1]["training"]["loss"] for each in (quick, exact)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)
    # It goes on as it began, or not at all.
    assert trained_in("exact", True, epochs=3, resume=True)[1] == "float32"
    for change, had, message in (
        ({"precision": "float32"}, True, "was in bfloat16, and .* precision is float32"),
        ({}, False, r"\(Old\) does not compute in bfloat16"),
    ):
        with pytest.raises(ModelError, match=message):
            trained_in("quick", had, epochs=3, resume=True, recipe=change)


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    """A configuration with much that is random, and much to keep."""
    path = tmp_path_factory.mktemp("strong") / "config.toml"
    recipe = (
        "\n[train]\nema = 0.9\naccumulate = 2\nclip = 1.0\nlabel_smoothing = 0.05\n"
        "crop = 32\npasses = 1\nscale = [0.75, 1.33]\nrotate = 30\ncutmix = 0.3\nbalance = 0.3\n"
    )
    return make_config(path, CONFIG + recipe, lr="0.005", da='"strong"', loss='"lovasz_ce"')


@pytest.fixture(scope="module")
def whole(strong, toy, tmp_path_factory):
    """What four epochs leave behind where nothing goes wrong."""
    out = tmp_path_factory.mktemp("whole") / "out"
    fit(load_config(strong), toy, out, epochs=4)
    return out


@pytest.mark.parametrize(
    ("where", "after"), [("write_state", 0), ("write_state", 2), ("link_checkpoint", 1), ("save_checkpoint", 3)]
)
def test_killed_and_resumed_is_as_never_killed(strong, whole, toy, tmp_path, where, after):
    assert crashes.end_of(crashes.killed, strong, toy, tmp_path / "out", after, where) == -signal.SIGKILL
    for path in (tmp_path / "out").glob("*.safetensors"):
        read_card(path)  # whole, whichever was there
    outcome = fit(load_config(strong), toy, tmp_path / "out", epochs=4, resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4]


def test_averaged_weights_are_validated_and_kept(whole):
    state, card = read_state(whole), read_card(whole / "last.safetensors")
    assert state.uuid == card.uuid
    kept = weights(whole / "last.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in state.optimizer["average"].items())
    assert not all(torch.equal(kept[name], value) for name, value in state.weights.items())
    rows = json.loads((whole / "history.json").read_text())
    assert [row["ema"] for row in rows] == [0.9] * 4
    assert "validated and kept is the moving average of the weights, ema 0.9" in (whole / "log").read_text()


def test_resumed_as_it_began_or_not_at_all(strong, whole, toy, tmp_path):
    settings = load_config(strong)
    for options, message in (
        (
            {"model": {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}}},
            "optimizer was Muon, is SGD",
        ),
        ({"model": {"loss": "miou"}}, "loss was lovasz_ce, is miou"),
        ({"seed": 1}, "--seed was 0, is 1"),
        ({"recipe": {"ema": 0.5}}, r"\[train\] ema was 0.9, is 0.5"),
        ({"recipe": {"crop": 64}}, r"\[train\] crop was 32, is 64"),
        ({"recipe": {"scale": (0.5, 2.0)}}, r"\[train\] scale was \[0.75, 1.33\], is \[0.5, 2.0\]"),
    ):
        for place in ({"out": whole}, {"out": tmp_path, "checkpoint": whole / "last.safetensors"}):
            with pytest.raises(ModelError, match=f"a training goes on as it began: {message}"):
                fit(settings, toy, epochs=5, resume=True, **{**options, **place})


def test_weights_of_pixels_and_classes_are_learned_from(config, toy, tmp_path):
    """What weighs most of all is learned first: here, that all is background."""
    root = tmp_path / "dataset"
    for part in ("training", "validation"):
        (root / part).mkdir(parents=True)
        for path in (toy / part).iterdir():
            (root / part / path.name).symlink_to(path)

    def near(tile):
        return (255 * (1 - squares(tile)))[:, :, None].astype(np.uint8)

    make_tileset(root / "training" / "near", TRAINING, "png", near)
    model = {"loss": "cross_entropy", "bs": 6}
    found = {}
    for name, recipe in (
        ("none", {}),
        ("pixels", {"weights": "near", "weight_scale": 50.0}),
        ("classes", {"classes_weights": "auto"}),
    ):
        found[name] = fit(config, root, tmp_path / name, epochs=2, model=model, recipe=recipe).confusion
    # Pixels of the background weigh 51, so that fewer are taken for foreground; classes alike take more for it.
    taken = {name: sum(row[1] for row in matrix) for name, matrix in found.items()}
    assert taken["pixels"] < taken["none"] < taken["classes"]


def test_hard_pixels_are_learned_from(config, toy, tmp_path):
    recipe = replace(config.recipe, hard=0.25)
    model = replace(config.model, loss="cross_entropy")
    trainer = Trainer(Plan(replace(config, model=model, recipe=recipe), toy, tmp_path / "out"), CPU, None)
    logits, labels = torch.randn(2, 2, 64, 64), torch.randint(0, 2, (2, 64, 64))
    logits[:, :, 16:] = 30 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1)[:, :, 16:]  # known for sure
    whole = replace(config, model=model)
    even = Trainer(Plan(whole, toy, tmp_path / "out"), CPU, None).loss(logits, labels)
    assert trainer.loss(logits, labels) == pytest.approx(4 * float(even), rel=0.01)


def test_training_stops_where_nothing_gets_better(config, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(optimise, "learning_rate", lambda *_, **__: 0.0)
    frozen = {"model": {"nn": "tests.components.train.test_training:unmoved"}, "recipe": {"patience": 2}}
    outcome = fit(config, toy, tmp_path / "out", epochs=9, **frozen)
    assert (outcome.epochs, outcome.best_epoch, len(outcome.history)) == (3, 1, 3)
    note = "stopped after epoch 3 of 9: none was better than epoch 1"
    assert note in outcome.notes and note in (tmp_path / "out" / "log").read_text()
    again = fit(config, toy, tmp_path / "out", epochs=9, resume=True, **frozen)
    assert again.history == outcome.history and note in again.notes


def unmoved(model, bands, classes):
    """A network without statistics, of which a rate of 0 leaves all as it is."""
    return torch.nn.Conv2d(bands, classes, 1)


def test_resume_to_more_epochs(config, toy, tmp_path):
    out = tmp_path / "out"
    fit(config, toy, out, epochs=2)
    assert (out / "checkpoint-00002-of-00002.pth").exists()
    outcome = fit(config, toy, out, epochs=3, resume=True)
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3] and outcome.epochs == 3
    # The old name would name other weights now.
    assert [path.name for path in out.glob("*.pth")] == ["checkpoint-00003-of-00003.pth"]
    assert "resuming from" in (out / "log").read_text()


def test_resume_from_a_checkpoint_goes_on_with_its_optimizer(strong, toy, tmp_path):
    """As the seed does it: --resume --checkpoint out/checkpoint-00002-of-00002.pth, into another folder too.

    The checkpoint holds averaged weights; what goes on are those that were learned.
    """
    config, out = load_config(strong), tmp_path / "out"
    fit(config, toy, out, epochs=2)
    outcome = fit(
        config, toy, tmp_path / "other", epochs=4, resume=True, checkpoint=out / "checkpoint-00002-of-00002.pth"
    )
    fit(config, toy, out, epochs=4, resume=True)
    assert same(tmp_path / "other" / "last.safetensors", out / "last.safetensors")
    assert (
        outcome.best_epoch in (3, 4)
        and read_card(tmp_path / "other" / "best.safetensors").epoch == outcome.best_epoch
    )


def test_resume_from_a_checkpoint_without_state(config, toy, tmp_path, capsys):
    fit(config, toy, tmp_path / "out", epochs=1)
    (tmp_path / "out" / "state.pt").unlink()
    outcome = fit(
        config, toy, tmp_path / "o", epochs=2, resume=True, checkpoint=tmp_path / "out" / "best.safetensors"
    )
    assert [row["epoch"] for row in outcome.history] == [2]
    assert "no optimizer state is stored with" in capsys.readouterr().out


def test_resume_with_nothing_to_resume_begins(config, toy, tmp_path, capsys):
    outcome = fit(config, toy, tmp_path / "out", epochs=1, resume=True)
    assert outcome.best_epoch == 1 and "training begins at epoch 1" in capsys.readouterr().out


def test_a_training_over_another_says_so(config, toy, tmp_path, capsys):
    fit(config, toy, tmp_path / "out", epochs=1)
    assert "begun again" not in capsys.readouterr().out
    outcome = fit(config, toy, tmp_path / "out", epochs=1)
    note = f"note: {tmp_path / 'out'} holds a training, which is begun again; --resume goes on with it"
    assert note in capsys.readouterr().out.splitlines() and len(outcome.history) == 1


def test_bug_21_resume_beyond_the_last_epoch(config, toy, trained, tmp_path):
    out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "log"}
    for options in ({"out": out}, {"out": tmp_path, "checkpoint": out / "last.safetensors"}):
        with pytest.raises(UsageError, match="already trained for 6 epochs, and --epochs is 5: give more than 6"):
            train_model(Plan(config, toy, epochs=5, resume=True, **options), CPU)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "log"}


def test_fine_tuning_starts_from_the_weights_and_counts_anew(config, toy, trained, tmp_path):
    out, _ = trained
    outcome = fit(config, toy, tmp_path, epochs=1, checkpoint=out / "best.safetensors", model={"lr": 1e-9})
    assert [row["epoch"] for row in outcome.history] == [1] and outcome.iou > 0.9
    assert read_card(tmp_path / "last.safetensors").epoch == 1


def test_the_best_epoch_is_kept_where_later_ones_are_worse(config, toy, trained, tmp_path, monkeypatch):
    start = trained[0] / "best.safetensors"
    # 18 tiles are a handful of steps; those of the second epoch throw away what was learned.
    monkeypatch.setattr(
        optimise, "learning_rate", lambda step, steps, rate, **_: 1e-9 if step < steps // 2 else 0.5
    )
    outcome = fit(config, toy, tmp_path, epochs=2, checkpoint=start)
    good, bad = (row["validation"]["iou"] or 0.0 for row in outcome.history)
    assert good > 0.9 and bad < 0.5
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    assert (outcome.best_epoch, outcome.iou, outcome.checkpoint) == (1, good, best)
    assert (read_card(best).epoch, read_card(last).epoch) == (1, 2)
    assert read_card(best).metrics["iou"] == good and not same(best, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnet18"}, "its encoder is tiny, the configuration has resnet18"),
        ({"nn": "segformer"}, "its nn is unet"),
        ({"norm": "group"}, "its norm is batch, the configuration has group"),
    ],
)
def test_checkpoint_of_another_network(config, toy, trained, tmp_path, change, message):
    out, _ = trained
    with pytest.raises(ModelError, match=message):
        fit(config, toy, tmp_path, epochs=9, checkpoint=out / "best.safetensors", model=change)
    with pytest.raises(ModelError, match=f"cannot be resumed.*: {next(iter(change))} was"):
        fit(config, toy, out, epochs=9, resume=True, model=change)


def test_damaged_state(config, toy, trained, tmp_path):
    out, _ = trained
    (tmp_path / "state.pt").write_bytes((out / "state.pt").read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"state\.pt is damaged"):
        fit(config, toy, tmp_path, epochs=9, resume=True)
    torch.save({"version": 1, "epoch": os.system}, tmp_path / "state.pt")
    with pytest.raises(ModelError, match=r"state\.pt is damaged"):
        fit(config, toy, tmp_path, epochs=9, resume=True)
    assert read_state(tmp_path / "none") is None


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_state_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "epoch": Hostile()}, tmp_path / "state.pt")
    with pytest.raises(ModelError, match=r"state\.pt is damaged"):
        read_state(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("limit", [1_000_000, 3_000_000])
def test_full_disk_keeps_what_is_there(config, toy, tmp_path, limit):
    """The checkpoint has 2 MB, the state 6 MB."""
    path = make_config(tmp_path / "config.toml")
    fit(load_config(path), toy, tmp_path / "out", epochs=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.name == "state.pt"}
    assert crashes.end_of(crashes.full, path, toy, tmp_path / "out", limit, tmp_path / "said") == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith("cannot write") and "File too large" in said
    assert (tmp_path / "out" / "state.pt").read_bytes() == before["state.pt"]
    for name in ("last.safetensors", "best.safetensors"):
        load_checkpoint(tmp_path / "out" / name)
    assert not list((tmp_path / "out").glob(".rsp-*"))


# --- what cannot be trained -------------------------------------------------------------------------------------


def test_tile_that_is_corrupt(config, tmp_path):
    make_dataset(tmp_path / "toy", archives=False)
    tile = TRAINING[4]
    (tmp_path / "toy" / "training" / "images" / f"{tile.z}" / f"{tile.x}" / f"{tile.y}.png").write_bytes(b"x")
    with pytest.raises(TileError, match=f"tile {tile.z}/{tile.x}/{tile.y}: not an image"):
        fit(config, tmp_path / "toy", tmp_path / "out", epochs=1)


def test_one_tile_is_trained_on(config, tmp_path):
    """A batch of one tile would leave batch normalisation without variance at the bottom of the network."""
    for part, tiles in (("training", TRAINING[:1]), ("validation", VALIDATION[:1])):
        make_tileset(tmp_path / "toy" / part / "images", tiles, "png", photo)
        make_tileset(tmp_path / "toy" / part / "labels", tiles, "png", squares)
    outcome = fit(config, tmp_path / "toy", tmp_path / "out", epochs=1, model={"ts": 32})
    assert outcome.training_tiles == outcome.validation_tiles == 1
    with pytest.raises(ModelError, match="take --bs 2 or more"):
        fit(config, tmp_path / "toy", tmp_path / "out", epochs=1, model={"ts": 32, "bs": 1})


def test_group_norms_learn_from_one_tile_at_a_time(config, toy, tmp_path):
    one = {"norm": "group", "bs": 1, "ts": 32, "ms": 0}
    with pytest.raises(ModelError, match='take --bs 2 or more, or norm = "group"'):
        fit(config, toy, tmp_path / "batch", epochs=1, model={**one, "norm": "batch"})
    outcome = fit(config, toy, tmp_path / "out", epochs=2, model=one)
    assert outcome.iou > 0.5
    model, card = load_checkpoint(tmp_path / "out" / "last.safetensors")
    assert card.norm == "group" and not has_batch_norm(model)
    fit(config, toy, tmp_path / "out", epochs=3, model=one, resume=True)


def test_last_batch_of_one_tile(config, toy, tmp_path):
    """18 tiles in batches of 17: bug 19 dropped what did not fill a batch."""
    outcome = fit(config, toy, tmp_path, epochs=1, model={"bs": 17, "ts": 32})
    assert sum(map(sum, outcome.history[0]["training"]["confusion"])) == 19 * 32 * 32


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({"ts": 100}, UsageError, "the tile size is 100; networks need a multiple of 32, as 96"),
        ({"loss": "none"}, PluginError, "unknown loss"),
        ({"da": "bend"}, PluginError, "unknown augmentation"),
        ({"metrics": ("iou", "auc")}, PluginError, "unknown metric 'auc'; known: accuracy, f1"),
        ({"loader": "disk"}, PluginError, "unknown loader"),
        ({"optimizer": "Adamm"}, ConfigError, "unknown 'Adamm'; expected one of ASGD, Adadelta"),
        ({"optimizer": "LBFGS"}, ConfigError, "unknown 'LBFGS'"),
        ({"optimizer_options": {"momentumm": 1}}, ConfigError, "momentumm"),
        ({"optimizer_options": {"eps": -1.0}}, ConfigError, "Invalid epsilon"),
    ],
)
def test_configurations_that_cannot_be(config, toy, tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        fit(config, toy, tmp_path / "out", epochs=1, model=model)
    with pytest.raises(UsageError, match="--epochs must be at least 1"):
        fit(config, toy, tmp_path / "out", epochs=0)


def test_training_that_diverges_says_so(config, toy, tmp_path):
    with pytest.raises(ModelError, match="training diverged; lower the learning rate"):
        fit(config, toy, tmp_path, epochs=3, model={"loss": "tests.components.train.test_training:infinite"})


def infinite(weights):
    return lambda logits, labels: (logits * math.inf).mean()


def constant_metric(matrix):
    return 0.125 + float(matrix.sum() < 0)


def test_metrics_of_ones_own_are_shown(config, toy, tmp_path):
    name = "tests.components.train.test_training:constant_metric"
    outcome = fit(config, toy, tmp_path, epochs=1, model={"metrics": ("IoU", "QoD", "f1", name)})
    part = outcome.history[0]["validation"]
    assert part[name] == 0.125 and {"iou", "qod", "f1"} <= set(part) and "qod" in (tmp_path / "log").read_text()
    assert read_card(tmp_path / "last.safetensors").metrics[name] == 0.125


def test_labels_without_foreground_are_remarked(config, tmp_path):
    for part, tiles in (("training", TRAINING[:2]), ("validation", VALIDATION[:2])):
        make_tileset(tmp_path / "toy" / part / "images", tiles, "png", photo)
        make_tileset(tmp_path / "toy" / part / "labels", tiles, "png", lambda tile: squares(tile) * 0)
    outcome = fit(config, tmp_path / "toy", tmp_path / "out", epochs=2)
    assert any("no pixel of the training labels is 'building'" in note for note in outcome.notes)
    assert json.loads((tmp_path / "out" / "history.json").read_text())[0]["validation"]["mcc"] is None
    assert math.isnan(outcome.mcc) and outcome.checkpoint.exists()


def test_left_out_tiles_are_remarked(config, tmp_path):
    make_dataset(tmp_path / "toy", archives=False)
    tile = TRAINING[0]
    (tmp_path / "toy" / "training" / "labels" / f"{tile.z}" / f"{tile.x}" / f"{tile.y}.png").unlink()
    outcome = fit(config, tmp_path / "toy", tmp_path / "out", epochs=1)
    assert outcome.training_tiles == 17
    assert any("images: 1 of 18 tiles are left out" in note for note in outcome.notes)


def test_more_bands_and_classes(config, tmp_path):
    """Five bands of uint16 in another order, and three classes."""
    from rsp.shared.config import Channel, ClassDef
    from rsp.shared.images import encode, encode_mask

    def deep(tile):
        rng = np.random.default_rng(tile.x * 1000 + tile.y)
        image = rng.integers(0, 20000, (64, 64, 5), dtype=np.uint16)
        image[:, :, 4] += label(tile).astype(np.uint16) * 20000
        return image

    def label(tile):
        mask = squares(tile)
        mask[24:40, 40:] = 2
        return mask

    for part, tiles in (("training", TRAINING), ("validation", VALIDATION[:2])):
        folder = tmp_path / "toy" / part
        with (
            open_writer(folder / "images.pmtiles", "tif") as images,
            open_writer(folder / "labels", "png") as labels,
        ):
            for tile in tiles:
                images.write(tile, encode(deep(tile), "tif"))
                labels.write(tile, encode_mask(label(tile), [(0, 0, 0), (1, 1, 1), (2, 2, 2)]))
    channels = (Channel("images", (5, 1, 2, 3, 4), (0.3,) * 5, (0.2,) * 5),)
    classes = tuple(
        ClassDef(title, (0, 0, 0), weight) for title, weight in (("none", 1.0), ("a", 1.0), ("b", 1.0))
    )
    outcome = fit(
        replace(config, channels=channels, classes=classes),
        tmp_path / "toy",
        tmp_path / "out",
        epochs=8,
        model={"loss": "cross_entropy", "bs": 2, "dap": 0.0},
    )
    # A few dozen steps separate three classes roughly; both kinds of foreground are found.
    found = outcome.history[-1]["validation"]["iou_of"]
    assert min(found["a"], found["b"]) > 0.5 and outcome.iou > 0.7, outcome.history[-1]["validation"]
    assert np.shape(outcome.confusion) == (3, 3)
    assert read_card(tmp_path / "out" / "best.safetensors").in_channels == 5


# --- rates and devices ------------------------------------------------------------------------------------------


def test_devices():
    assert choose("cpu", None) == ("cpu", 1) and choose(None, 0) == ("cpu", 1)
    for device, gpus in (("cpu", 1), ("cuda", 0), ("mps", None), (None, -1), (None, 99), ("cuda:99", None)):
        with pytest.raises(UsageError):
            choose(device, gpus)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_taken_unless_one_was_asked_for():
    assert choose(None, None) == ("cpu", 1)
    with pytest.raises(UsageError, match=r"shows 0 GPUs to torch .*; --gpus 0 trains on the CPU"):
        choose(None, 2)


def test_storage_that_refuses(config, toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        fit(config, toy, tmp_path / "file" / "out", epochs=1)


def test_a_training_takes_no_more_threads_than_the_container_has_processors(monkeypatch):
    """torch counts the processors of the node; a number that a person gave stands."""
    before = torch.get_num_threads()
    monkeypatch.setattr(processes, "cpu_count", lambda: 2)
    try:
        torch.set_num_threads(3)
        with processes.join("cpu"):
            assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        with processes.join("cpu"):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
