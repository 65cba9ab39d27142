"""Models as `torch.export` writes them (.pt2): a graph as JSON, and its weights beside it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from rsp.shared.errors import ModelError
from rsp.shared.learning.archives import Checked, open_archive
from rsp.shared.learning.formats.graph import DTYPES, Graph
from rsp.shared.learning.formats.program import check_tensors, clean_program

PROGRAM, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
TABLES = {
    "data/weights/model_weights_config.json": "data/weights/",
    "data/constants/model_constants_config.json": "data/constants/",
}
# `version` alone is of torch before 2.8; it has another layout and is refused for what it lacks.
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|extra/\w+"
)
EXTRA = re.compile(r"extra/\w+")


def write_pt2(path: Path, model: nn.Module, example: torch.Tensor, extra: dict[str, str], max_batch: int) -> None:
    """Export a network; see `rsp.shared.learning.formats.write_model`."""
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    # The example would be stored as a pickle, and be larger than a small network.
    program.example_inputs = None
    # Which line of which file made an operator does not belong in the file, which should not depend on the place.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=extra)


def clean_pt2(path: Path) -> Checked:
    """Return what torch may load of a file.

    Raises:
        ModelError: it is damaged, or holds what `rsp export` never writes of a network.
    """
    with open_archive(path) as archive:
        archive.require(MEMBERS, ("archive_version", "byteorder", PROGRAM, SAMPLES, *TABLES))
        if archive.sizes[SAMPLES]:
            raise ModelError(f"{SAMPLES} is pickled data, which could run any code")
        program = clean_program(archive.text(PROGRAM))
        for table, folder in TABLES.items():
            sizes = {
                name.removeprefix(folder): size for name, size in archive.sizes.items() if name.startswith(folder)
            }
            check_tensors(archive.text(table), sizes)

        return archive.copy({PROGRAM: program}, EXTRA)


def load_pt2(checked: Checked, device: str) -> Graph:
    """Return the network of what `clean_pt2` returned.

    Raises:
        ModelError: it contradicts itself.
    """
    members = checked.members
    if bytes(members["byteorder"]).decode("latin-1") != sys.byteorder:
        raise ModelError(f"its weights are of a machine whose numbers are not {sys.byteorder}-endian")
    weights: dict[str, torch.Tensor] = {}
    for table, folder in TABLES.items():
        for name, entry in json.loads(bytes(members[table]))["config"].items():
            weights[name] = _tensor(members[folder + entry["path_name"]], entry["tensor_meta"]).to(device)
    return Graph(json.loads(bytes(members[PROGRAM])), weights, device)


def _tensor(data: bytes | memoryview, meta: Any) -> torch.Tensor:
    """Return a weight; `check_tensors` has seen that it lies within its record."""
    sizes, strides = ([value["as_int"] for value in meta[key]] for key in ("sizes", "strides"))
    values = torch.empty(0, dtype=DTYPES[meta["dtype"]])
    if len(data):
        values = torch.frombuffer(data, dtype=values.dtype).clone()  # the file may change, and is not aligned
    return values.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def load_trusted_pt2(source: IO[bytes], device: str) -> nn.Module:
    """Load a program as torch does, which may run any code."""
    program = torch.export.load(source)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()
