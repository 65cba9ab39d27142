"""The configuration: every form that users have, and what is said about a wrong one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rsp.shared.classes import class_index
from rsp.shared.config import KEYS, TABLES, ClassDef, ModelConfig, describe, find_config, load_config
from rsp.shared.errors import ConfigError
from rsp.shared.keys import EXPECTED
from rsp.shared.recipe import Recipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# The four forms say the same in the spellings of their time.
SEED = """
[dataset]
path = "~/rsp_dataset"
pg_dsn = "host=127.0.0.1 dbname=rsp user=postgres"
[[channels]]
sub = "images"
bands = [1, 2, 3]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[[classes]]
title = "background"
color = "white"
[[classes]]
title = "building"
color = "deeppink"
[model]
name = "albunet"
encoder = "resnet50"
pretrained = true
loss = "lovasz"
batch_size = 4
tile_size = 256
num_filters = 16
lr = 0.0001
data_augmentation = 0.5
decay = 0.01
"""

V04 = """
[[channels]]
name = "images"
bands = [1, 2, 3]
[[classes]]
title = "building"
color = "#ff1493"
[model]
nn = "albunet"
encoder = "resnet50"
pretrained = true
loader = "tiles"
loss = "lovasz"
bs = 4
ts = 256
num_filters = 16
da = "flip"
dap = 0.5
lr = 0.0001
decay = 0.01
"""

V05 = V04.replace("ts = 256", 'ts = [256, 256]\nms = 32\nmetrics = ["iou", "mcc"]')

NEAT = """
[auth]
pg = "host=127.0.0.1 dbname=rsp user=postgres"
provider = {user = "me", key = "x"}
[[channels]]
name = "images"
bands = [1, 2, 3]
[[classes]]
title = "background"
color = "transparent"
weight = 0.0
[[classes]]
title = "building"
color = "deeppink"
[model]
nn = "albunet"
encoder = "resnet50"
loader = "SemSeg"
ts = [256, 256]
num_filters = 16
decay = 0.01
[train]
pretrained = true
bs = 4
loss = "lovasz"
metrics = ["iou", "mcc"]
da = {name = "flip", p = 0.5}
optimizer = {name = "AdamW", lr = 0.0001, betas = [0.9, 0.99]}
"""


def load(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path)


@pytest.mark.parametrize("text", [SEED, V04, V05, NEAT], ids=["seed", "0.4", "0.5", "neat-EO"])
def test_every_form_says_the_same(tmp_path, text):
    config = load(tmp_path, text)
    (channel,) = config.channels
    assert (channel.name, channel.bands, channel.kind) == ("images", (1, 2, 3), "auto")
    assert (channel.mean, channel.std) == (
        IMAGENET if text == SEED else ((), ())
    )  # where none are given: measured
    assert [entry.title for entry in config.classes] == ["background", "building"]
    assert config.colors == [(255, 255, 255), (255, 20, 147)]
    model = config.model
    assert (model.nn, model.encoder, model.pretrained, model.loss) == ("albunet", "resnet50", True, "lovasz")
    assert (model.bs, model.ts, model.num_filters, model.lr, model.decay) == (4, 256, 16, 0.0001, 0.01)
    assert (model.da, model.dap, model.loader, model.metrics) == ("flip", 0.5, "tiles", ("iou", "mcc"))


def test_what_only_one_form_has(tmp_path):
    seed, v05, neat = load(tmp_path, SEED), load(tmp_path, V05), load(tmp_path, NEAT)
    assert seed.dataset == Path("~/rsp_dataset").expanduser()
    assert seed.pg_dsn == neat.pg_dsn == "host=127.0.0.1 dbname=rsp user=postgres"
    assert v05.model.ms == 32 and v05.dataset is None and v05.pg_dsn is None
    assert neat.classes[0] == ClassDef("background", (255, 255, 255), 0.0, transparent=True)
    assert neat.model.optimizer == "AdamW" and neat.model.optimizer_options == {"betas": [0.9, 0.99]}
    assert seed.model.optimizer == "Adam" and seed.model.optimizer_options == {}


def test_the_projects_own_file():
    config = load_config(Path(__file__).parents[2] / "config.toml")
    assert (config.model, config.recipe) == (ModelConfig(), Recipe())  # it says nothing but the defaults
    assert class_index(config.classes, "building") == 1
    with pytest.raises(ConfigError, match="no class 'road'; the classes are background, building"):
        class_index(config.classes, "road")


def test_defaults(tmp_path):
    config = load(tmp_path, '[[channels]]\nname="a"\nbands=[4,1]\n[[classes]]\ntitle="x"\ncolor="red"\n')
    assert config.channels[0].mean == () and config.channels[0].std == ()
    assert (config.model, config.recipe) == (ModelConfig(), Recipe())
    model, recipe = config.model, config.recipe
    assert (model.nn, model.encoder, model.pretrained, model.ts) == ("unet", "tiny", False, "auto")
    assert (model.side, model.overlap) == (512, 128)
    assert (model.loss, model.bs, model.da, model.dap) == ("cross_entropy + dice", 8, "color", 1)
    assert (model.optimizer, model.lr, model.decay, model.optimizer_options) == ("Muon", 0.005, None, {})
    assert (recipe.crop, recipe.scale, recipe.passes, recipe.encoder_rate) == ("auto",) * 4
    assert (recipe.ema, recipe.warmup, recipe.schedule) == (0.99, 0.1, "cosine")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[model]\npretrained = true", ("AdamW", 0.002)),
        ("[train]\npretrained = true", ("AdamW", 0.002)),
        ("[model]\npretrained = true\n[train]\npretrained = false", ("Muon", 0.005)),
        ('[train]\noptimizer = {name = "SGD"}', ("SGD", 0.002)),
        ("[train]\noptimizer = {lr = 0.3}", ("Muon", 0.3)),
        ("[model]\npretrained = true\nlr = 0.3", ("AdamW", 0.3)),
        ('[train]\npretrained = true\noptimizer = {name = "Muon"}', ("Muon", 0.005)),
    ],
)
def test_the_usual_optimizer_and_its_rate(tmp_path, text, expected):
    config = load(tmp_path, f"{CHANNEL}{classes('a', 'b')}{text}\n")
    assert (config.model.optimizer, config.model.lr) == expected


@pytest.mark.parametrize("text", [SEED, V04, V05], ids=["seed", "0.4", "0.5"])
def test_what_forms_of_the_seed_leave_out_is_as_it_was(tmp_path, text):
    config = load(tmp_path, text)
    assert (config.model.optimizer, config.model.da) == ("Adam", "flip")
    recipe = config.recipe
    assert (recipe.crop, recipe.passes, recipe.scale, recipe.ema) == (0, 1, (1.0, 1.0), 0.0)
    assert recipe.rate_of_encoder(pretrained=True) == 1
    sizes = [line for line in text.splitlines() if line.startswith(("ts =", "tile_size ="))]
    assert load(tmp_path, text.replace(sizes[0], "")).model.ts == 512
    assert load(tmp_path, text.replace('da = "flip"', 'da = "none"')).model.da == (
        "flip" if text == SEED else "none"
    )


@pytest.mark.parametrize(
    "change", [("dap = 0.5", ""), ("lr = 0.0001", ""), ("decay = 0.01", "[train]\nema = 0.9")]
)
def test_files_that_leave_more_out_take_the_defaults(tmp_path, change):
    config = load(tmp_path, V04.replace(*change))
    assert config.model.optimizer == "AdamW" and config.recipe.crop == "auto"
    assert config.model.lr == (0.002 if "lr" in change[0] else 0.0001)
    assert config.model.loss == "lovasz" and config.model.bs == 4


@pytest.mark.parametrize(
    ("said", "data", "expected"),
    [
        # side, tiles, batch; crop, scale, passes
        ({}, (512, 36, 8), (256, (0.75, 1.33), 6)),
        ({}, (512, 198, 8), (256, (0.75, 1.33), 2)),  # 792 crops are 99 batches
        ({}, (512, 199, 8), (256, (0.75, 1.33), 1)),
        ({}, (512, 10_000, 8), (256, (0.75, 1.33), 1)),
        ({}, (64, 1, 8), (64, (0.75, 1.33), 793)),
        ({"crop": 0}, (512, 36, 8), (0, (1.0, 1.0), 23)),
        ({"crop": 128, "scale": (0.5, 2.0)}, (512, 36, 8), (128, (0.5, 2.0), 2)),
        ({"passes": 2}, (64, 1, 8), (64, (0.75, 1.33), 2)),
        ({}, (96, 5, 3), (96, (0.75, 1.33), 60)),
    ],
)
def test_what_is_left_to_be_settled_by_the_tiles(said, data, expected):
    side, tiles, batch = data
    recipe = Recipe(**said).settled(side=side, tiles=tiles, batch=batch)
    assert (recipe.crop, recipe.scale, recipe.passes) == expected
    assert recipe.settled(side=32, tiles=1, batch=1) == recipe
    assert recipe.ema == 0.99
    if "passes" not in said:
        crops = tiles * (side / (recipe.crop or side)) ** 2
        batches = [math.ceil(math.ceil(passes * crops) / batch) for passes in (recipe.passes - 1, recipe.passes)]
        assert batches[1] >= 100 > batches[0]


CHANNEL = '[[channels]]\nname="a"\nbands=[1]\n'


def classes(*titles):
    return "".join(f'[[classes]]\ntitle="{title}"\ncolor="red"\n' for title in titles)


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        (classes("roof"), ["background", "roof"]),
        (classes("roof", "road"), ["background", "roof", "road"]),
        (classes("Background", "roof"), ["Background", "roof"]),
        (classes("other", "roof") + '[model]\nname="albunet"\n', ["other", "roof"]),
        (classes("other", "roof") + "[train]\nbs=2\n", ["other", "roof"]),
        (classes("other", "roof") + '[dataset]\npath="x"\n', ["other", "roof"]),
    ],
)
def test_the_background_where_the_form_leaves_it_out(tmp_path, text, titles):
    assert [entry.title for entry in load(tmp_path, CHANNEL + text).classes] == titles


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("encoder", "enkoder", r"\[model\]: unknown key 'enkoder'; expected one of nn, name, encoder"),
        ("[model]", "[modell]", r"unknown table \[modell\]; expected one of dataset, auth, channels"),
        ("batch_size = 4", "batch_size = 4.5", "batch_size: expected a whole number, 1 or more, got 4.5"),
        ("batch_size = 4", "batch_size = 0", "batch_size: expected a whole number, 1 or more, got 0"),
        ("batch_size = 4", "batch_size = true", "batch_size: expected a whole number, 1 or more, got True"),
        (
            "tile_size = 256",
            "tile_size = [256, 512]",
            'tile_size: expected a positive whole number, two equal ones, or "auto"',
        ),
        ("tile_size = 256", "tile_size = 256\nts = 256", "'ts' repeats 'ts'"),
        ("pretrained = true", 'pretrained = "yes"', "pretrained: expected true or false, got 'yes'"),
        ("lr = 0.0001", "lr = 0", "lr: expected a number above 0, got 0"),
        ("lr = 0.0001", "lr = nan", "lr: expected a number above 0, got nan"),
        ("lr = 0.0001", 'lr = "fast"', "lr: expected a number above 0, got 'fast'"),
        ("data_augmentation = 0.5", "data_augmentation = 75", "expected a number from 0 to 1, got 75"),
        ('"deeppink"', '"depink"', r"\[\[classes\]\] 2: color: 'depink' is not a colour; expected a CSS3 name"),
        ('"deeppink"', '"#ff149"', "is not a colour"),
        ('"deeppink"', "[255, 20, 147]", r"color: expected a text, got \[255, 20, 147\]"),
        ('title = "building"', "", r"\[\[classes\]\] 2: the key 'title' is missing: Name of the class"),
        ('title = "building"', 'title = ""', "title: expected a name"),
        ('title = "building"', r'title = "build\ning"', "title: expected a name in one line"),
        ('title = "building"', 'title = "background"', "same title"),
        (
            "bands = [1, 2, 3]",
            "bands = [0, 1, 2]",
            r"\[\[channels\]\] 1: bands: they are counted from 1, got",
        ),
        ("bands = [1, 2, 3]", "bands = []", "bands: expected a list of whole numbers"),
        ("bands = [1, 2, 3]", "bands = [1, 2]", "mean has 3 numbers for 2 bands"),
        ("std = [0.229, 0.224, 0.225]", "std = [0.2, 0.2]", "std has 2 numbers for 3 bands"),
        ("std = [0.229, 0.224, 0.225]", "std = [0.2, 0, 0.2]", "std must be above 0"),
        ("mean = [0.485, 0.456, 0.406]", "mean = [0.4, inf, 0.4]", "mean: expected a list of numbers"),
        ('sub = "images"', 'sub = "../images"', "name must be that of a plain folder, got '../images'"),
        ('sub = "images"', "", "the key 'name' is missing"),
        ("[model]", "[[model]]", r"\[model\]: expected a table, got list"),
        ("[model]", "[model", "cannot read the configuration"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, before, after, message):
    assert before in SEED
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, SEED.replace(before, after, 1))
    assert "config.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("p = 0.5", "p = 2", r"\[train\] da: p: expected a number from 0 to 1"),
        ("p = 0.5", "prob = 0.5", r"\[train\] da: unknown key 'prob'; expected one of name, p"),
        ('da = {name = "flip", p = 0.5}', 'da = "flip"', "da: expected a table, got 'flip'"),
        ("lr = 0.0001", "lr = -1", r"\[train\] optimizer: lr: expected a number above 0"),
        ('"AdamW"', "7", r"\[train\] optimizer: name: expected a text, got 7"),
        ("weight = 0.0", "weight = -1", "weight: expected a number, 0 or more"),
        ('metrics = ["iou", "mcc"]', 'metrics = "iou"', "metrics: expected a list of texts, got 'iou'"),
        ("bs = 4", "epochs = 4", r"\[train\]: unknown key 'epochs'"),
    ],
)
def test_what_is_wrong_in_the_later_form(tmp_path, before, after, message):
    assert before in NEAT
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, NEAT.replace(before, after, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (classes("a"), r"no \[\[channels\]\]; expected at least one"),
        (CHANNEL, r"no \[\[classes\]\]"),
        (CHANNEL + '[classes]\ntitle="a"\ncolor="red"\n', r"classes is written \[\[classes\]\]"),
        (CHANNEL + classes("roof", "background"), "`background` must be the first"),
        (CHANNEL + classes(*map(str, range(256))), "a mask of one byte a pixel holds 255"),
        ("model = 5\n" + CHANNEL + classes("a", "b"), r"\[model\]: expected a table, got int"),
        ("channels = [1]\n" + classes("a"), r"\[\[channels\]\] 1: expected a table, got int"),
    ],
)
def test_whole_files_that_are_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_two_channels_in_order(tmp_path):
    text = '[[channels]]\nname="a"\nbands=[1,2,3]\n[[channels]]\nname="b"\nbands=[1]\n'
    assert [(channel.name, channel.bands) for channel in load(tmp_path, text + classes("x")).channels] == [
        ("a", (1, 2, 3)),
        ("b", (1,)),
    ]


def test_where_the_file_is_looked_for(tmp_path, monkeypatch):
    """--config, else RSP_CONFIG, else ~/.rsp_config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RSP_CONFIG", raising=False)
    with pytest.raises(
        ConfigError, match=r"no configuration file .*\.rsp_config \(the default place\); give one with"
    ):
        find_config(None)
    (tmp_path / ".rsp_config").write_text(SEED)
    assert find_config(None) == tmp_path / ".rsp_config"
    (tmp_path / "env.toml").write_text(SEED)
    monkeypatch.setenv("RSP_CONFIG", "~/env.toml")
    assert find_config(None) == tmp_path / "env.toml"
    (tmp_path / "own.toml").write_text(SEED)
    assert find_config(tmp_path / "own.toml") == tmp_path / "own.toml"
    monkeypatch.setenv("RSP_CONFIG", "")
    assert find_config(None) == tmp_path / ".rsp_config"
    monkeypatch.setenv("RSP_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(ConfigError, match=r"gone.toml \(RSP_CONFIG\)"):  # never the next place in its stead
        find_config(None)
    with pytest.raises(ConfigError, match=r"gone.toml \(--config\)"):
        find_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError):
        find_config(tmp_path)


def test_a_byte_order_mark_and_no_text(tmp_path):
    (tmp_path / "config.toml").write_text(SEED, "utf-8-sig")
    assert load_config(tmp_path / "config.toml").model.bs == 4
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "config.toml")


def test_the_description_has_every_key():
    text = describe()
    assert set(TABLES) == set(KEYS)
    for name, keys in KEYS.items():
        assert f"{name}]" in text
        for key in keys:
            assert f"| `{key.name}` |" in text and key.text in text and key.holds in EXPECTED
            assert all(f"`{alias}`" in text for alias in key.aliases)
    assert "| `0.005` |" in text and "None" not in text
