"""The programs of torch.export files, run without torch's compiler."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from rsp.shared.errors import ModelError
from rsp.shared.learning.formats.graph import Graph
from rsp.shared.learning.formats.pt2 import clean_pt2, load_pt2, load_trusted_pt2

ROOT = Path(__file__).parent.parent.parent


def test_the_answers_are_those_of_torch(models):
    ours = load_pt2(clean_pt2(models["pt2"]), "cpu")
    with models["pt2"].open("rb") as file:
        theirs = load_trusted_pt2(file, "cpu")
    for count in (1, 3):
        images = torch.rand(count, 3, 96, 96).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            assert torch.equal(ours(images), theirs(images))


def test_what_exported_models_import(models):
    """Each of these takes between half a second and two, in every worker that starts."""
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from rsp.shared.learning.inference import load_predictor\n"
        "for name in sys.argv[1:5]:\n"
        "    load_predictor(Path(name), device='cpu').masks([np.zeros((64, 64, 3), np.uint8)])\n"
        "    print(*(name for name in sys.argv[5:] if name in sys.modules))"
    )
    heavy = ["sympy", "transformers", "kornia", "torch._dynamo", "torch._inductor", "kfp", "onnxruntime"]
    paths = [str(models[kind]) for kind in ("checkpoint", "pt2", "jit", "onnx")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths, *heavy], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["", "", "", "onnxruntime"]


# --- what networks of ours do not have, and an export may ---------------------------------------------------

FLOAT = {"dtype": 7, "requires_grad": False, "device": {"type": "cpu", "index": None}, "strides": [],
         "storage_offset": {"as_int": 0}, "layout": 7}  # fmt: skip


def tensor(name: str) -> dict:
    return {"as_tensor": {"name": name}}


def node(target: str, outputs: list, **inputs: object) -> dict:
    return {
        "target": target,
        "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in inputs.items()],
        "outputs": outputs,
        "metadata": {},
    }


def graph(*nodes: dict, output: str = "y", **weights: torch.Tensor) -> Graph:
    """Return the graph of some nodes that begin with `x`."""
    specs = [{"parameter": {"arg": {"name": name}, "parameter_name": name}} for name in weights]
    sizes = [{"as_expr": {"expr_str": "s1"}}, {"as_int": 3}]
    program = {
        "graph_module": {
            "graph": {"nodes": nodes, "tensor_values": {"x": {**FLOAT, "sizes": sizes}}},
            "signature": {
                "input_specs": [*specs, {"user_input": {"arg": tensor("x")}}],
                "output_specs": [{"user_output": {"arg": tensor(output)}}],
            },
        }
    }
    return Graph(json.loads(json.dumps(program)), weights, "cpu")


def test_arguments_of_every_kind():
    x = torch.rand(4, 3)
    split = node(
        "torch.ops.aten.chunk.default", [{"as_tensors": [{"name": "a"}, {"name": "b"}]}],
        self=tensor("x"), chunks={"as_int": 2},
    )  # fmt: skip
    joined = node(
        "torch.ops.aten.cat.default", [tensor("y")], tensors={"as_tensors": [{"name": "b"}, {"name": "a"}]}
    )
    assert torch.equal(graph(split, joined)(x), torch.cat([x[2:], x[:2]]))

    largest = node(
        "torch.ops.aten.max.dim", [tensor("y"), {"as_none": True}],
        self=tensor("x"), dim={"as_int": 1}, keepdim={"as_bool": True},
    )  # fmt: skip
    assert torch.equal(graph(largest)(x), x.max(1, True).values)

    rows = node(
        "torch.ops.aten.sym_size.int", [{"as_sym_int": {"as_name": "n"}}], self=tensor("x"), dim={"as_int": 0}
    )
    twice = node(
        "_operator.mul", [{"as_sym_int": {"as_name": "m"}}],
        a={"as_sym_int": {"as_name": "n"}}, b={"as_sym_int": {"as_int": 3}},
    )  # fmt: skip
    flat = node(
        "torch.ops.aten.view.default", [tensor("y")], self=tensor("x"), size={"as_sym_ints": [{"as_name": "m"}]}
    )
    assert torch.equal(graph(rows, twice, flat)(x), x.flatten())

    made = node(
        "torch.ops.aten.full.default", [tensor("f")], size={"as_ints": [3]}, fill_value={"as_float": "Infinity"},
        dtype={"as_scalar_type": 8}, layout={"as_layout": 7}, device={"as_device": {"type": "cpu", "index": None}},
    )  # fmt: skip
    least = node("torch.ops.aten.minimum.default", [tensor("y")], self=tensor("x"), other=tensor("f"))
    assert torch.equal(graph(made, least)(x), x.double())

    indexed = node(
        "torch.ops.aten.index.Tensor", [tensor("y")],
        self=tensor("x"), indices={"as_optional_tensors": [{"as_none": True}, tensor("w")]},
    )  # fmt: skip
    assert torch.equal(graph(indexed, w=torch.tensor([2, 0]))(x), x[:, [2, 0]])

    copied = node(
        "torch.ops.aten.clone.default", [tensor("y")], self=tensor("x"), memory_format={"as_memory_format": 1}
    )
    assert graph(copied)(x.t().contiguous().t()).is_contiguous()

    asserted = node("torch.ops.aten._assert_tensor_metadata.default", [], a=tensor("x"))
    assert torch.equal(graph(asserted, output="x")(x), x)


def test_options_that_are_left_out_keep_their_defaults():
    x = torch.rand(4, 3)
    softmax = node(
        "torch.ops.aten.add.Tensor", [tensor("y")], self=tensor("x"), other=tensor("x"), alpha={"as_int": 3}
    )
    assert torch.equal(graph(softmax)(x), x + 3 * x)
    clamp = node("torch.ops.aten.clamp.default", [tensor("y")], self=tensor("x"), max={"as_float": 0.5})
    assert torch.equal(graph(clamp)(x), x.clamp(max=0.5))


def test_programs_that_contradict_themselves():
    relu = node("torch.ops.aten.relu.default", [tensor("y")], self=tensor("x"))
    later = copy.deepcopy(relu)
    later["inputs"][0]["arg"] = tensor("y")
    with pytest.raises(ModelError, match="'y' before it is computed"):
        graph(later)
    with pytest.raises(ModelError, match="has no argument 'other'"):
        graph(node("torch.ops.aten.relu.default", [tensor("y")], self=tensor("x"), other=tensor("x")))
    with pytest.raises(ModelError, match="one tensor"):
        Graph({"graph_module": {"graph": {"tensor_values": {}},
                                "signature": {"input_specs": [], "output_specs": []}}}, {}, "cpu")  # fmt: skip


def test_layers_are_freed_as_soon_as_nobody_needs_them(monkeypatch):
    """Else a large network would hold all of its layers at once."""
    names = ["x", "a", "b", "c", "y"]
    steps = [
        node("torch.ops.aten.relu.default", [tensor(after)], self=tensor(before))
        for before, after in itertools.pairwise(names)
    ]
    made = graph(*steps)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    for step in made._steps:

        def watched(value: torch.Tensor) -> torch.Tensor:
            nonlocal most
            answer = value + 1
            alive.append(weakref.ref(answer))
            most = max(most, sum(each() is not None for each in alive))
            return answer

        step.function = watched
    assert torch.equal(made(torch.zeros(2, 3)), torch.full((2, 3), 4.0))
    assert most == 2
