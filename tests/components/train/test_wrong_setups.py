"""Wrong set-ups of `rsp train`, each with its message: what is wrong, where, and what would be right."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoConfig

from rsp.components.train import training
from rsp.components.train.guard import Divergence
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.shared.config import load_config
from rsp.shared.errors import ModelError
from rsp.shared.images import encode_mask
from rsp.shared.learning.inference import Predictor
from rsp.shared.tileset import open_writer
from tests.networks import Gpu
from tests.tilesets import CONFIG, squares
from tests.toy import TRAINING, make_config, make_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A folder with one epoch in it."""
    from rsp.components.train.tool import train

    root = tmp_path_factory.mktemp("trained")
    train(root / "out", config=make_config(root / "config.toml"), dataset=toy, epochs=1, gpus=0)
    return root / "out"


def with_line(after, line):
    """Return the configuration with a line more."""
    return CONFIG.replace(after, f"{after}\n{line}", 1)


def train_table(line):
    return f"{CONFIG}\n[train]\n{line}\n"


BUILDING = 'title = "building"\ncolor = "deeppink"'


@pytest.mark.parametrize(
    ("text", "changes", "code", "message"),
    [
        # What the file says cannot be read, or is not known.
        (CONFIG.replace("bs = 4", "bs = "), {}, 1, "cannot read the configuration"),
        (f"{CONFIG}\n[modell]\nlr = 1.0\n", {}, 1, "unknown table [modell]; expected one of dataset"),
        (with_line("[model]", "learning_rate = 1.0"), {}, 1, "[model]: unknown key 'learning_rate'"),
        (CONFIG, {"bs": '"four"'}, 1, "bs: expected a whole number"),
        # Channels and classes.
        (CONFIG, {"bands": "[0, 1, 2]"}, 1, "bands: "),
        (CONFIG, {"mean": "[0.5, 0.5]"}, 1, "mean has 2 numbers for 3 bands"),
        (
            CONFIG, {"bands": "[1, 2, 3, 4]", "mean": '"auto"', "std": '"auto"'}, 1,
            "the model wants 4 bands of 'images', the tile has 3",
        ),
        (CONFIG.replace('name = "images"', 'name = "photos"'), {}, 1, "no tile set photos"),
        (CONFIG.replace('title = "building"', 'title = "background"'), {}, 1, "have the same title"),
        (CONFIG.replace(BUILDING, f"{BUILDING}\nignore = true"), {}, 1, "nothing can be told apart"),
        (
            CONFIG.replace(BUILDING, f"{BUILDING}\nweight = 0"), {}, 1,
            "only 'background' weighs anything by [[classes]] weight: nothing can be told apart",
        ),
        # The network.
        (CONFIG, {"nn": '"unett"'}, 1, "unknown network 'unett'; known: "),
        (CONFIG, {"encoder": '"resnet19"'}, 1, "unknown encoder 'resnet19'; built in are tiny, resnet18"),
        (CONFIG, {"pretrained": "true"}, 1, "no pretrained weights exist for the encoder 'tiny'"),
        (CONFIG + 'norm = "layer"\n', {}, 1, "[model] norm: expected one of batch, group"),
        (
            CONFIG + 'norm = "group"\n', {"encoder": '"resnet18"', "pretrained": "true"}, 1,
            "the pretrained weights of the encoder 'resnet18' were trained with batch normalisation",
        ),
        (CONFIG, {"ts": "100"}, 2, "the tile size is 100; networks need a multiple of 32, as 96"),
        (CONFIG, {"ts": "8192"}, 2, "the tile size is 8192; networks see tiles of up to 4096 pixels"),
        # How it learns.
        (CONFIG, {"loss": '"lovazs"'}, 1, "unknown loss 'lovazs'; known: "),
        (CONFIG, {"loss": '"dice + -2 focal"'}, 1, "focal is multiplied by -2; expected a number above 0"),
        (CONFIG, {"lr": "900.0"}, 1, "900"),
        (CONFIG, {"bs": "1", "ts": "32"}, 1, "take --bs 2 or more"),
        (train_table('optimizer = {name = "Adamm"}'), {}, 1, "optimizer.name: unknown 'Adamm'; expected one of"),
        (train_table('optimizer = {name = "Adam", momentum = 0.9}'), {}, 1, "momentum"),
        (train_table('schedule = "linear"'), {}, 1, "schedule: expected one of cosine, constant, got 'linear'"),
        (train_table('precision = "half"'), {}, 1, "precision: expected one of auto, float32, bfloat16"),
        (train_table("scale = [1.5, 0.5]"), {}, 1, "expected two factors from 0.125 to 8, the smaller first"),
        (train_table("crop = 50"), {}, 1, "crop: networks need a multiple of 32, got 50"),
        (train_table("ema = 1.0"), {}, 1, "ema: 1 would keep the first weights for ever"),
        (train_table("profile = 1000"), {}, 1, "profile: expected up to 200 steps"),
        (train_table("hard = 0"), {}, 1, "hard: 0 leaves no pixel to learn from"),
        (train_table("hard = 0.5"), {}, 1, "hard: the loss 'lovasz' has no part that is a mean over pixels"),
        (train_table("freeze = 9"), {}, 1, "freeze: the encoder has 5 stages"),
        (train_table('weights = "near"'), {}, 1, "near"),
        (train_table("epochs = 3"), {}, 1, "[train]: unknown key 'epochs'"),
    ],
)  # fmt: skip
def test_wrong_configurations(rsp, toy, tmp_path, text, changes, code, message):
    config = make_config(tmp_path / "config.toml", text, **changes)
    if "nn" in changes:
        config.write_text(config.read_text().replace('nn = "unet"', f"nn = {changes['nn']}"))
    ran = rsp("train", "--config", config, "--dataset", toy, "--epochs", 1, "--gpus", 0, tmp_path / "out")
    last = ran.stderr.splitlines()[-1]
    assert ran.code == code and last.startswith("rsp train: error: ") and message in last, ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.glob("out/*.safetensors")) and not list(tmp_path.glob("out/state.pt"))


def test_an_encoder_that_takes_no_tiles_of_this_size(rsp, toy, tmp_path):
    shape = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}
    AutoConfig.for_model("hiera", **shape).save_pretrained(tmp_path / "hiera")
    config = make_config(tmp_path / "config.toml", CONFIG, encoder=f'"{tmp_path / "hiera"}"')
    ran = rsp("train", "--config", config, "--dataset", toy, "--epochs", 1, "--gpus", 0, tmp_path / "out")
    assert ran.code == 1 and "takes no images of 96 px (prediction, with the borders of tiles)" in ran.stderr
    assert "Epoch" not in ran.stdout and not list(tmp_path.glob("out/*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--resume", "--seed", 1], {}, "--seed was 0, is 1"),
        (["--resume", "--loss", "dice", "--bs", 2], {}, "processes) was 4, is 2; loss was lovasz, is dice"),
        (["--resume"], {"mean": "[0.5, 0.5, 0.5]"}, "mean of 'images' was [0.485, 0.456, 0.406], is [0.5,"),
        (["--resume"], {"num_filters": "8"}, "num_filters was 32, is 8"),
        (["--checkpoint", "{trained}/state.pt"], {}, "is a pickle"),
        (["--checkpoint", "{trained}/last.safetensors"], {"encoder": '"resnet18"'}, "its encoder is tiny"),
    ],
)  # fmt: skip
def test_wrong_beginnings(rsp, toy, trained, tmp_path, flags, changes, message):
    config = make_config(tmp_path / "config.toml", with_line("[model]", "num_filters = 32"), **changes)
    flags = [str(flag).format(trained=trained) for flag in flags]
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != "log"}
    out = trained if "--resume" in flags else tmp_path / "out"
    ran = rsp("train", "--config", config, "--dataset", toy, "--epochs", 2, "--gpus", 0, *flags, out)
    assert ran.code == 1 and message in ran.stderr, ran.stderr
    assert before == {path: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != "log"}


@pytest.mark.parametrize(
    ("part", "tiles", "colors", "message"),
    [
        ("training", TRAINING[:2], 3, "holds class 2; the configuration has 2 classes (0 to 1, and 255"),
        ("validation", TRAINING[:2], 2, "have no tile in common; are they of the same cover and zoom?"),
    ],
)
def test_wrong_labels(rsp, tmp_path, part, tiles, colors, message):
    config = make_config(tmp_path / "config.toml")
    make_dataset(tmp_path / "toy", archives=False)
    labels = tmp_path / "toy" / part / "labels"
    shutil.rmtree(labels)
    with open_writer(labels, "png") as writer:
        for tile in tiles:
            writer.write(tile, encode_mask(squares(tile) * (colors - 1), [(0, 0, 0)] * colors))
    ran = rsp("train", "--config", config, "--dataset", tmp_path / "toy", "--epochs", 1, tmp_path / "out")
    assert ran.code == 1 and message in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("training", "no pixel of the training labels counts: all are 255, or of a class to ignore"),
        ("validation", "no pixel of the validation labels counts: all are 255, or of a class to ignore"),
    ],
)
def test_labels_of_which_nothing_counts(rsp, tmp_path, part, message):
    config = make_config(tmp_path / "config.toml")
    make_dataset(tmp_path / "toy", archives=False)
    for path in (tmp_path / "toy" / part / "labels").glob("15/*/*.png"):
        path.write_bytes(encode_mask(squares(TRAINING[0]) * 0 + 255, [(0, 0, 0)] * 256))
    ran = rsp("train", "--config", config, "--dataset", tmp_path / "toy", "--epochs", 1, tmp_path / "out")
    assert ran.code == 1 and message in ran.stderr and not list((tmp_path / "out").glob("*.safetensors"))


class Wild(torch.nn.Module):
    """A network that is surer of everything than any that learns."""

    def __init__(self, model, bands, classes):
        super().__init__()
        self.weight = torch.nn.Conv2d(bands, classes, 1)

    def forward(self, x):
        return self.weight(x) * 1e5


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("cross_entropy", "the loss is "),
        # A loss that never exceeds 1.
        ("lovasz", "the cross entropy of the last batch is "),
    ],
)
def test_training_that_left_all_sense(rsp, toy, tmp_path, loss, message):
    config = make_config(tmp_path / "config.toml")
    model = "tests.components.train.test_wrong_setups:Wild"
    ran = rsp(
        "train", "--config", config, "--dataset", toy, "--epochs", 1, "--gpus", 0, "--model", model,
        "--loss", loss, tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 1 and message in ran.stderr, ran.stderr
    assert (
        "that of a network that knows nothing is 0.693: training diverged; lower the learning rate" in ran.stderr
    )
    assert not (tmp_path / "out" / "state.pt").exists()


def test_loss_that_is_no_number():
    watch = Divergence(lambda logits, labels, weights: logits.sum())
    watch.check(3, 0.5, 0.1)
    with pytest.raises(ModelError, match=r"loss is nan in epoch 3.*the state after epoch 2 is kept.*lower --lr"):
        watch.check(3, float("nan"), 0.1)


class Full(torch.nn.Module):
    """A network whose batch does not fit."""

    def __init__(self, model, bands, classes):
        super().__init__()
        self.weight = torch.nn.Conv2d(bands, classes, 1)

    def forward(self, x):
        if len(x) > 1 or x.shape[-1] > 32:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.weight(x)


@pytest.mark.parametrize(
    ("bs", "advice"),
    [
        (4, "a batch of 4 tiles of 64 px does not fit; take --bs 2 (with `accumulate = 2`"),
        (1, "a batch of 1 tile of 64 px does not fit; take smaller tiles (--ts)"),
    ],
)
def test_out_of_memory_says_which_batch_may_fit(rsp, toy, tmp_path, bs, advice):
    config = make_config(tmp_path / "config.toml")
    model = "tests.components.train.test_wrong_setups:Full"
    ran = rsp(
        "train", "--config", config, "--dataset", toy, "--epochs", 1, "--gpus", 0, "--model", model, "--bs", bs,
        tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 1 and f"out of memory on cpu: {advice}" in ran.stderr


def test_validation_takes_as_many_windows_as_fit(toy, tmp_path, monkeypatch, capsys):
    """What did not fit in one epoch is not tried in the next; a CPU stands for the GPU."""
    tried = []

    class Small(Predictor):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.device = Gpu("cpu")

        def _forward(self, batch):
            tried.append(len(batch))
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._forward(batch)

    monkeypatch.setattr(training, "Predictor", Small)
    config = load_config(make_config(tmp_path / "config.toml"))
    training.train_model(Plan(config, toy, tmp_path / "out", epochs=2), World(torch.device("cpu")))
    assert tried == [4, *[2] * 6]
    assert capsys.readouterr().err.count("windows at once do not fit") == 1
