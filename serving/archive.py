"""Derive TorchServe's archive (.mar) from a model: the model, our handler, and how it is to be served.

The archive is never what is stored: the exported model is. The same model, name and version give the same
archive, byte for byte, which TorchServe's own archiver cannot do (it notes the time).
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

from rsp.serving.manifest import sha8
from rsp.shared.atomic import atomic_path
from rsp.shared.errors import StorageError

HERE = Path(__file__).parent
HANDLER = "rsp_handler.py"
CONFIG = "model-config.yaml"
SUFFIXES = (".pt2", ".onnx", ".pt", ".jit", ".safetensors")


def archive_name(model: Path, name: str, version: str) -> str:
    """Return the file name of an archive: it says which model, which version, and which bytes."""
    digest = sha8(model)
    return f"{name}-{digest}.mar" if version == digest else f"{name}-{version}-{digest}.mar"


def write_archive(
    model: Path, path: Path, *, name: str, version: str, description: str, precision: str | None = None
) -> None:
    """Write the archive of a verified release. What is in the model, the worker checks when it loads it.

    Args:
        model: The model.
        path: Where to write.
        name: What the model is called in TorchServe's URLs.
        version: Its version there.
        description: What TorchServe tells about it.
        precision: What the worker computes in; as model-config.yaml says if None.

    Raises:
        StorageError: it cannot be written.
    """
    # The suffix means nothing to us (formats are told by content), but is kept for those who look inside.
    stored = "model" + (model.suffix if model.suffix in SUFFIXES else "")
    manifest = {
        "createdOn": "01/01/1980 00:00:00",  # TorchServe warns where there is none
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "description": description,
            "serializedFile": stored,
            "handler": HANDLER,
            "configFile": CONFIG,
        },
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, "MAR-INF/MANIFEST.json", json.dumps(manifest, indent=2).encode() + b"\n")
        _add(archive, HANDLER, (HERE / "handler.py").read_bytes())
        _add(archive, CONFIG, _settings(precision))
        # As a stream: a model may be larger than the memory of whoever derives its archive.
        entry = _entry(stored)
        entry.file_size = model.stat().st_size
        with model.open("rb") as source, archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _settings(precision: str | None) -> bytes:
    """Return what TorchServe is told of each model: our file, or that which RSP_MODEL_CONFIG names."""
    path = Path(os.environ.get("RSP_MODEL_CONFIG") or HERE / CONFIG)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"RSP_MODEL_CONFIG: cannot read {path}: {error.strerror}") from None
    if precision is None:
        return content
    import yaml

    try:
        settings = yaml.safe_load(content) or {}
        settings["handler"] = {**(settings.get("handler") or {}), "precision": precision}
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise StorageError(f"RSP_MODEL_CONFIG: {path} is not a YAML table of settings: {error}") from None
    return yaml.safe_dump(settings, sort_keys=True).encode()


def trusts_models() -> bool:
    """Tell whether the operator of this server lets exported models run any code: RSP_TRUST_MODEL=1."""
    return os.environ.get("RSP_TRUST_MODEL") == "1"


def _entry(name: str) -> zipfile.ZipInfo:
    """Return a member with fixed date and mode: the archive's bytes follow from its content alone."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    return entry


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_entry(name), data)
