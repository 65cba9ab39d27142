"""Training on several nodes, for real: what the pods of a TrainJob run, with a real S3 server between them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rsp.components.train import follow, lease
from rsp.components.train import nodes as program
from rsp.components.train.component import train
from rsp.components.train.launch import launch
from rsp.components.train.lease import Lease
from rsp.components.train.nodes import PLAN, addressed, first_error, place, train_on_nodes, worker
from rsp.components.train.plan import Plan
from rsp.components.train.step import train_step
from rsp.components.train.trainjob import Nodes
from rsp.pipelines.parameters import CONFIG
from rsp.shared.config import load_config
from rsp.shared.errors import ClusterError, RspError, TileError, UsageError
from rsp.shared.locations import Address, location, pinned
from tests.components.train.test_trainjob import STEP
from tests.components.train.trainer_server import Job, free_port, real_pods, trainer
from tests.s3 import moto
from tests.toy import make_config, make_dataset

KEYS = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "endpoint": "AWS_ENDPOINT_URL_S3",
}
ONE = Nodes(2, cpu="1", memory="1Gi")


@pytest.fixture(scope="module")
def s3():
    with moto() as server:
        yield server


@pytest.fixture
def root(s3, monkeypatch, tmp_path) -> Address:
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    return Address(s3.bucket())


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def config(tmp_path) -> Path:
    return make_config(tmp_path / "config.toml")


def stored(root: Address, toy: Path) -> dict[str, dict[str, str]]:
    """The tile sets of the toy in S3, by addresses that say of which content."""
    found: dict[str, dict[str, str]] = {}
    for part in ("training", "validation"):
        for name in ("images", "labels"):
            where = root / part / f"{name}.pmtiles"
            storage, key = where.open()
            storage.upload(key, toy / part / f"{name}.pmtiles")
            found.setdefault(part, {})[name] = str(pinned(where))
    return found


@pytest.fixture
def cluster(s3, monkeypatch, tmp_path):
    """A cluster in which this process is a step with the secret `rsp-s3`."""
    with trainer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        step = Job(server, {"metadata": {"name": "step"}}).pod()
        (main,) = (each for each in STEP["spec"]["containers"] if each["name"] == "main")
        env = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "rsp-s3", "key": key, "optional": True}}}
            for key, name in KEYS.items()
        ]
        step.spec = {"containers": [{**main, "env": env}]}
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setattr(follow, "POLL", 0.2)
        monkeypatch.setenv("KFP_POD_NAME", step.name)
        secrets = {"rsp-s3": {key: s3.environ[name] for key, name in KEYS.items() if name in s3.environ}}
        server.behave = real_pods(secrets, tmp_path / "pods")
        yield server


@pytest.mark.slow
def test_two_nodes_train_what_two_processes_of_one_node_do(
    root, toy, config, cluster, tmp_path, monkeypatch, capfd
):
    sets = stored(root, toy)
    result = train_step(
        sets["training"], sets["validation"], config=config, checkpoint=tmp_path / "checkpoint.safetensors",
        chart=tmp_path / "chart.html", epochs=1, gpus=0, seed=7, nodes=ONE, data_root=str(root / "data"),
    )  # fmt: skip
    said = capfd.readouterr().out
    assert "[node 0] Epoch 1/1" in said and "2 x cpu" in said and "[node 1] Epoch" not in said
    assert not cluster.jobs and len(cluster.made) == 1

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as on a node of one processor
    plan = Plan(load_config(config), toy, tmp_path / "out", 1, seed=7)
    expected = launch(plan, "cpu", 2)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == expected.checkpoint.read_bytes()
    assert result.confusion == expected.confusion and result.best_epoch == expected.best_epoch
    assert "<svg" in (tmp_path / "chart.html").read_text()

    # Rank 0 wrote, the other one nothing; what the attempt was told is gone.
    work = place(str(root / "data"), {}).parent
    names = {each.key.partition(".")[2] for each in work.storage().list()}
    assert {"json", "run/best.safetensors", "run/state.pt"} <= names
    assert {name.partition("/")[0] for name in names} == {"json", "run"}

    # The same once more is there already.
    again = train_on_nodes(sets, load_config(config), str(root / "data"), ONE, epochs=1, seed=7)
    assert again.checkpoint == location(again.checkpoint) and len(cluster.made) == 1


# --- one process of several, here ---------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """This process as torchrun starts the only one."""
    told = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**told, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)


def write_plan(root: Address, sets, config: Path, planned: dict | None = None, **changes) -> Address:
    """What a step tells its nodes."""
    wanted = {"out": root / "work" / "out", "epochs": 1, "seed": 3, **(planned or {})}
    plan = Plan(load_config(config), Path("dataset"), **wanted)
    told = {
        "format": 1, "sets": sets, "plan": plan.to_json(), "device": "cpu",
        "result": str(root / "work" / "result.json"), **changes,
    }  # fmt: skip
    where = root / "work" / "job" / PLAN
    storage, key = where.open()
    storage.write(key, json.dumps(told).encode())
    Lease(where.parent).renew()
    return where


def read(where: Address) -> bytes:
    storage, key = where.open()
    return storage.read(key)[0]


def test_a_process_trains_and_leaves_its_result(root, toy, config, alone):
    where = write_plan(root, stored(root, toy), config)
    assert worker(where) == 0
    result = json.loads(read(root / "work" / "result.json"))
    assert result["epochs"] == 1 and result["checkpoint"] == str(root / "work" / "out" / "best.safetensors")
    assert first_error(where.parent) is None

    # Cut off before the result was written: the state says that all is done, and there is nothing to go on with.
    storage, key = (root / "work" / "result.json").open()
    storage.delete(key)
    assert worker(where) == 0 and storage.stat(key) is not None


def test_nodes_start_from_a_checkpoint_once(root, toy, config, alone, capfd):
    sets = stored(root, toy)
    assert worker(write_plan(root, sets, config)) == 0
    storage, key = (root / "work" / "out" / "best.safetensors").open()
    start = root / "champion.safetensors"
    start.open()[0].write("champion.safetensors", storage.read(key)[0])
    capfd.readouterr()

    planned = {"checkpoint": start, "out": root / "work" / "tuned"}
    assert worker(write_plan(root, sets, config, planned)) == 0
    assert f"fine-tuning from {start}" in capfd.readouterr().out
    # Another attempt, which has one more epoch to do, goes on with what the first one has learnt.
    assert worker(write_plan(root, sets, config, {**planned, "epochs": 2})) == 0
    said = capfd.readouterr().out
    assert "fine-tuning" not in said and "after epoch 1" in said


def test_what_training_starts_from_decides_its_place(root, config, cluster, monkeypatch):
    start = root / "champion.safetensors"
    places = []
    monkeypatch.setattr(program, "_result", lambda work: places.append(work) or "trained before")
    for content in (b"one", b"another"):
        start.open()[0].write("champion.safetensors", content)
        train_on_nodes({}, load_config(config), str(root), ONE, epochs=1, seed=0, start=start)
    train_on_nodes({}, load_config(config), str(root), ONE, epochs=1, seed=0)
    assert len(set(places)) == 3
    with pytest.raises(UsageError, match="several nodes cannot read: put it into S3"):
        train_on_nodes({}, load_config(config), str(root), ONE, epochs=1, seed=0, start=Path("c.safetensors"))


def test_weights_of_tiles_decide_the_place_of_a_training(root, config, cluster, monkeypatch):
    settings, places = load_config(config), []
    monkeypatch.setattr(program, "_result", lambda work: places.append(work) or "trained before")
    for content in (b"100,200,15,2", b"100,200,15,3"):
        (root / "tiles.csv").open()[0].write("tiles.csv", content)
        recipe = replace(settings.recipe, tile_weights=str(root / "tiles.csv"))
        train_on_nodes({}, replace(settings, recipe=recipe), str(root), ONE, epochs=1, seed=0)
    assert len(set(places)) == 2
    recipe = replace(settings.recipe, tile_weights="tiles.csv")
    with pytest.raises(
        UsageError, match=r"tile_weights: tiles\.csv: several nodes cannot read it: put it into S3"
    ):
        train_on_nodes({}, replace(settings, recipe=recipe), str(root), ONE, epochs=1, seed=0)


def test_a_process_leaves_its_error(root, toy, config, alone, tmp_path):
    sets = stored(root, toy)
    labels = root / "training" / "labels.pmtiles"
    storage, key = labels.open()
    storage.write(key, b"rubbish")
    where = write_plan(root, sets, config)
    assert worker(where) == 1
    error = first_error(where.parent)
    assert isinstance(error, RspError) and "labels.pmtiles was replaced" in str(error)  # its ETag is another


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"format": 2}, "is of format 2, and this image knows 1"), ({"device": "cuda"}, "shows 0 GPUs to torch")],
)
def test_a_process_that_cannot_begin_says_so(root, config, alone, changes, said):
    where = write_plan(root, {}, config, **changes)
    assert worker(where) == 2
    assert said in str(first_error(where.parent))


def test_the_first_error_counts(root):
    """What one process raises ends the others, whose errors only say that it is gone."""
    for rank, moment, text in ((0, 2.0, "connection closed"), (1, 1.0, "tile 1/2/3: not an image")):
        program._leave(root / "job" / PLAN, rank, TileError(text))
        storage = (root / "job").storage()
        data = json.loads(storage.read(f"error-{rank}.json")[0])
        storage.write(f"error-{rank}.json", json.dumps({**data, "time": moment}).encode())
    error = first_error(root / "job")
    assert type(error) is TileError and str(error) == "tile 1/2/3: not an image"


def test_nodes_that_nobody_waits_for_end(root, config, alone, capsys, monkeypatch):
    """A step that was killed at once could not remove its training, and GPUs would go on for a week."""
    where = write_plan(root, {}, config)
    there = Lease(where.parent)
    assert not there.expired()
    ended = threading.Event()
    monkeypatch.setattr(lease, "EVERY", 0.01)
    stop = there.watch(ended.set)
    storage = where.parent.storage()
    storage.write(lease.ALIVE, f"{time.time() - lease.SILENCE - 1:.0f}".encode())
    assert ended.wait(20)
    stop.set()
    assert worker(where) == 1 and "nobody waits" in capsys.readouterr().err  # started again by the cluster
    there.renew()
    assert not there.expired()
    storage.delete(lease.ALIVE)
    assert there.expired()


def test_a_process_ends_when_its_step_is_gone():
    script = "from rsp.components.train.nodes import _gone; _gone(); input()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.PIPE)
    assert done.returncode == -signal.SIGTERM and "nobody waits" in done.stderr


# --- what a step refuses ------------------------------------------------------------------------------------


def test_data_that_not_every_node_can_read(config, toy):
    with pytest.raises(UsageError, match="give the pipeline a data_root"):
        addressed({"training": {"images": "/tmp/images"}})
    with pytest.raises(UsageError, match="several nodes read archives in S3"):
        addressed({"training": {"images": "s3://bucket/tiles"}})
    with pytest.raises(UsageError, match="needs a data_root in S3"):
        place("/data", {})


def test_the_component_trains_on_nodes_as_it_is_told(run_component, toy, capfd):
    sets = {f"{part}_{kind}": toy / part / f"{kind}.pmtiles" for part in ("training", "validation")
            for kind in ("images", "labels")}  # fmt: skip
    for told, said in (
        ({"nodes": 2}, "several nodes read archives in S3"),
        ({"nodes": 2, "gpus": "1"}, "with 2 nodes the step only waits"),
        ({"nodes": 2, "node_gpus": "-1"}, "GPUs of a node must be 0 or more"),
    ):
        with pytest.raises(RuntimeError):
            run_component(train, sets, config=CONFIG, **told)
        assert said in capfd.readouterr().out


def test_the_component_takes_weights_of_pixels_as_an_artifact(run_component, toy, capfd):
    sets = {f"{part}_{kind}": toy / part / f"{kind}.pmtiles" for part in ("training", "validation")
            for kind in ("images", "labels")}  # fmt: skip
    with pytest.raises(RuntimeError):
        run_component(train, sets | {"training_weights": sets["training_labels"]}, config=CONFIG)
    assert "weights of pixels were given, and the configuration does not use them" in capfd.readouterr().out


def test_a_step_holds_no_idle_gpus(config, tmp_path):
    with pytest.raises(UsageError, match=r"with 2 nodes the step only waits.*set gpus to 0, and node_gpus"):
        train_step({}, {}, config=config, checkpoint=tmp_path / "c", chart=tmp_path / "h", epochs=1, gpus=4,
                   seed=0, nodes=ONE)  # fmt: skip


def test_the_same_training_has_the_same_place(config):
    settings = load_config(config)
    what = {"config": settings, "seed": 1}
    here = place("s3://bucket/root", what)
    assert here == place("s3://bucket/root", {"config": load_config(config), "seed": 1})
    assert str(here).startswith("s3://bucket/root/train/")
    model = replace(settings.model, lr=0.5)
    assert here != place("s3://bucket/root", {**what, "config": replace(settings, model=model)})


def test_a_training_that_ends_well_and_leaves_nothing(root, toy, config, cluster):
    told = []

    def behave(job: Job) -> None:
        told.append(read(location(job.manifest["spec"]["trainer"]["command"][-1])).decode())
        job.condition("Complete")

    cluster.behave = behave
    settings = replace(load_config(config), pg_dsn="postgresql://someone:hidden@db/osm")
    with pytest.raises(ClusterError, match="does it run another image"):
        train_on_nodes(stored(root, toy), settings, str(root), ONE, epochs=1, seed=0, poll=0.02)
    (job,), (plan,) = cluster.made, told
    assert "s3://" in plan and "hidden" not in plan + json.dumps(job.manifest)
    assert job.manifest["metadata"]["ownerReferences"]
    assert not list(root.storage().list("train/"))
