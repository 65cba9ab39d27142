"""The archive: what is in it, that it is the same every time, and what is refused."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from rsp.serving.archive import archive_name, write_archive
from rsp.serving.manifest import sha8
from rsp.shared.errors import StorageError
from tests.serving.tiny import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


def build_archive(model: Path, folder: Path, *, name: str = "rsp", version: str = "1") -> Path:
    path = folder / archive_name(model, name, version)
    write_archive(model, path, name=name, version=version, description="a network: background, building")
    return path


def test_members_and_manifest(tmp_path, model):
    path = build_archive(model, tmp_path, name="roofs", version="7")
    assert path == tmp_path / f"roofs-7-{sha8(model)}.mar"
    assert archive_name(model, "roofs", sha8(model)) == f"roofs-{sha8(model)}.mar"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "MAR-INF/MANIFEST.json", "rsp_handler.py", "model-config.yaml", "model.safetensors",
        ]  # fmt: skip
        assert archive.read("model.safetensors") == model.read_bytes()
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
    assert (manifest["modelName"], manifest["modelVersion"]) == ("roofs", "7")
    assert manifest["serializedFile"] == "model.safetensors"
    assert manifest["description"] == "a network: background, building"


def test_the_manifest_has_what_torchserves_own_archiver_writes(tmp_path, model):
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging_utils import ModelExportUtils

    config = ModelArchiverConfig(model_name="m", version="1", handler="h.py", serialized_file="m.pt")
    theirs = json.loads(ModelExportUtils.generate_manifest_json(config))
    with zipfile.ZipFile(build_archive(model, tmp_path, name="m")) as archive:
        ours = json.loads(archive.read("MAR-INF/MANIFEST.json"))
    assert set(theirs) <= set(ours) and set(theirs["model"]) <= set(ours["model"])
    assert theirs["archiverVersion"] == ours["archiverVersion"]


def test_settings_of_another_file(tmp_path, model, monkeypatch):
    settings = tmp_path / "gpu.yaml"
    settings.write_text("batchSize: 8\n")
    monkeypatch.setenv("RSP_MODEL_CONFIG", str(settings))
    with zipfile.ZipFile(build_archive(model, tmp_path, name="m")) as archive:
        assert archive.read("model-config.yaml") == b"batchSize: 8\n"
    settings.unlink()
    with pytest.raises(StorageError, match=r"RSP_MODEL_CONFIG: cannot read .*gpu\.yaml: No such file"):
        build_archive(model, tmp_path, name="m")


def test_the_precision_of_a_server(tmp_path, model, monkeypatch):
    def written(precision: str | None) -> dict:
        write_archive(model, tmp_path / "m.mar", name="m", version="1", description="", precision=precision)
        with zipfile.ZipFile(tmp_path / "m.mar") as archive:
            return yaml.safe_load(archive.read("model-config.yaml"))

    ours, changed = written(None), written("bfloat16")
    assert ours["handler"]["precision"] == "float32"
    assert changed == {**ours, "handler": {**ours["handler"], "precision": "bfloat16"}}
    settings = tmp_path / "gpu.yaml"
    monkeypatch.setenv("RSP_MODEL_CONFIG", str(settings))
    settings.write_text("batchSize: 8\n")
    assert written("bfloat16") == {"batchSize": 8, "handler": {"precision": "bfloat16"}}
    settings.write_text("- 8\n")
    with pytest.raises(StorageError, match=r"gpu\.yaml is not a YAML table of settings"):
        written("bfloat16")


def test_the_same_bytes_every_time(tmp_path, model):
    first = build_archive(model, tmp_path / "a", name="rsp").read_bytes()
    second = build_archive(model, tmp_path / "b" / "c", name="rsp").read_bytes()
    assert first == second
    assert build_archive(model, tmp_path / "a", name="rsp", version="2").read_bytes() != first


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_the_same_bytes_whatever_the_clock_says(tmp_path, model, monkeypatch, zone):
    """Dates in a zip file have two seconds: two builds in a row prove nothing."""
    first = build_archive(model, tmp_path / "now", name="rsp").read_bytes()
    seconds, now, local, universal = 1_000_000_007.0, time.time, time.localtime, time.gmtime
    monkeypatch.setattr(time, "time", lambda: seconds)
    monkeypatch.setattr(time, "localtime", lambda at=None: local(seconds if at is None else at))
    monkeypatch.setattr(time, "gmtime", lambda at=None: universal(seconds if at is None else at))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    other = tmp_path / "model.safetensors"
    other.write_bytes(model.read_bytes())
    os.utime(other, (seconds, seconds))
    try:
        second = build_archive(other, tmp_path / "2001", name="rsp")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert time.time is now and second.read_bytes() == first
    with zipfile.ZipFile(second) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read("MAR-INF/MANIFEST.json"))["createdOn"] == "01/01/1980 00:00:00"


def test_a_folder_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_archive(model, tmp_path / "file", name="rsp")
