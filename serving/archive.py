"""Derive TorchServe's archive (.mar) from a model: the model, our handler, and how it is to be served.

    python -m rsp.serving.archive model.pt2 --out archives

The archive is never what is stored: the exported model is. The same model, name and version give the same
archive, byte for byte, which TorchServe's own archiver cannot do (it notes the time).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

from rsp.shared.arguments import add_trust_model
from rsp.shared.atomic import atomic_path
from rsp.shared.errors import ModelError, RspError, StorageError

HERE = Path(__file__).parent
HANDLER = "rsp_handler.py"
CONFIG = "model-config.yaml"
# TorchServe puts both into URLs and file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SUFFIXES = (".pt2", ".onnx", ".pt", ".jit", ".safetensors")


def sha8(model: Path) -> str:
    """Return what identifies a model: the first eight hex digits of the SHA-256 of its file."""
    try:
        with model.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise ModelError(f"cannot read the model {model}: {error.strerror}") from error


def archive_name(model: Path, name: str, version: str) -> str:
    """Return the file name of an archive: it says which model, which version, and which bytes."""
    digest = sha8(model)
    return f"{name}-{digest}.mar" if version == digest else f"{name}-{version}-{digest}.mar"


def build_archive(model: Path, out: Path, *, name: str, version: str = "", trust_model: bool = False) -> Path:
    """Write the archive of a model that nobody has looked at yet.

    Args:
        model: An exported model (`.pt2`, `.onnx`, TorchScript) or a checkpoint.
        out: Where to write: a path that ends in `.mar`, or a folder, in which the archive is named
            `<name>-<version>-<8 digits of the model's SHA-256>.mar` (`<name>-<8 digits>.mar` without a version).
        name: What the model is called in TorchServe's URLs.
        version: Its version there; those 8 digits if empty.
        trust_model: Take an exported model even where it could run any code. The server refuses it all the same,
            unless RSP_TRUST_MODEL=1 is set where it runs.

    Returns:
        The path of the archive.

    Raises:
        ModelError: the file is not a model of ours, is damaged or could run code, or name or version do
            not fit into a URL.
        StorageError: it cannot be written.
    """
    from rsp.shared.learning.formats import check_model

    version = version or sha8(model)
    for what, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            raise ModelError(
                f"the {what} of a model may only hold letters, digits, dots, dashes and underscores (64 at most, "
                f"a letter or digit first), got {text!r}"
            )
    card = check_model(model, trust_model=trust_model)
    path = out if out.suffix == ".mar" else out / archive_name(model, name, version)
    titles = ", ".join(entry.title for entry in card.classes)
    write_archive(model, path, name=name, version=version, description=f"{card.nn}, {card.encoder}: {titles}")
    return path


def write_archive(model: Path, path: Path, *, name: str, version: str, description: str) -> None:
    """Write the archive of a model that somebody else has checked; the worker checks it again when it loads.

    Args:
        model: The model.
        path: Where to write.
        name: What the model is called in TorchServe's URLs.
        version: Its version there.
        description: What TorchServe tells about it.

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
        _add(archive, CONFIG, _settings())
        # As a stream: a model may be larger than the memory of whoever derives its archive.
        entry = _entry(stored)
        entry.file_size = model.stat().st_size
        with model.open("rb") as source, archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _settings() -> bytes:
    """Return what TorchServe is told of each model: our file, or that which RSP_MODEL_CONFIG names."""
    path = Path(os.environ.get("RSP_MODEL_CONFIG") or HERE / CONFIG)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"RSP_MODEL_CONFIG: cannot read {path}: {error.strerror}") from None


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


def main(argv: list[str] | None = None) -> int:
    """Write an archive and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m rsp.serving.archive", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="exported model or checkpoint")
    parser.add_argument("--out", type=Path, default=Path(), help="folder, or file that ends in .mar (default: .)")
    parser.add_argument("--name", default="rsp", help="name of the model (default: rsp)")
    parser.add_argument("--version", default="", help="version (default: 8 digits of the model's SHA-256)")
    add_trust_model(parser)
    args = parser.parse_args(argv)
    try:
        print(
            build_archive(args.model, args.out, name=args.name, version=args.version, trust_model=args.trust_model)
        )
    except RspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
