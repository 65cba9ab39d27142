"""Exported models of a stranger: what would run code, write files or read others is refused before it can."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from rsp.shared.config import ModelConfig
from rsp.shared.errors import ModelError
from rsp.shared.learning import archives
from rsp.shared.learning.formats import check_model, load_network, write_model
from rsp.shared.learning.models import build_model, encoders
from rsp.shared.learning.models.folding import folded
from tests.networks import make_all, make_card

ROOT = Path(__file__).parents[2]
PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("models"), make_card(tile_size=32, overlap=0))


def rewrite(source: Path, out: Path, changes) -> Path:
    """Copy an archive; `changes` maps a member to a function of its bytes, or to None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            root, _, name = entry.filename.partition("/")
            change = changes.pop(name, lambda data: data)
            if change is not None:
                new.writestr(entry.filename, change(old.read(entry)))
        for name, change in changes.items():
            new.writestr(f"{root}/{name}", change(b""))
    return out


def of_json(change):
    """Make a function of JSON one of bytes."""

    def changed(data: bytes) -> bytes:
        value = json.loads(data)
        return json.dumps(change(value) or value).encode()

    return changed


def of_graph(change):
    return of_json(lambda program: change(program["graph_module"]["graph"]))


def child(code: str, *args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=cwd, env=environment
    )


# --- torch.export -------------------------------------------------------------------------------------------


def evaluate(text):
    """Put a text where torch hands it to sympy."""

    def change(graph):
        graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return {PROGRAM: of_graph(change)}


def call(target, argument):
    node = {
        "target": target, "inputs": [{"name": "x", "arg": argument, "kind": 1}], "outputs": [], "metadata": {},
        "is_hop_single_tensor_return": None, "name": "evil",
    }  # fmt: skip
    return {PROGRAM: of_graph(lambda graph: graph["nodes"].insert(0, node))}


def import_module(program):
    """Describe a keyword of the network by an enumeration of a module, which torch imports."""
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = json.loads(signature["in_spec"])
    spec[1]["children_spec"][1]["context"] = json.dumps([{"__enum__": True, "fqn": "evil:X", "name": "A"}])
    signature["in_spec"] = json.dumps(spec)


def rename(program):
    text = json.dumps(program).replace('"conv2d_1"', '"conv2d_1 = open(0)"')
    return json.loads(text)


def weight(**changes):
    return {WEIGHTS: of_json(lambda table: table["config"]["head.weight"].update(changes))}


def meta(**changes):
    return {WEIGHTS: of_json(lambda table: table["config"]["head.weight"]["tensor_meta"].update(changes))}


def program(**changes):
    return {PROGRAM: of_json(lambda value: value.update(changes))}


DEEP = "[" * 100_000
PT2 = {
    "code as an expression": (evaluate("open('marker', 'w') or 1"), "an expression is not one of sizes"),
    "a call by another name": (evaluate("Symbol.__init__.__globals__"), "an expression is not one of sizes"),
    "a call of a function": (evaluate("Mul(exec('1'), 2)"), "an expression is not one of sizes"),
    "an endless number": (evaluate("10**10**10"), "an expression is not one of sizes"),
    "a long expression": (evaluate("1+" * 1000 + "1"), "an expression is not one of sizes"),
    "a deep expression": (evaluate("-" * 900 + "1"), None),
    "a module of inputs": ({PROGRAM: of_json(import_module)}, "something other than one tensor"),
    "a guard": (program(guards_code=["open('marker', 'w')"]), "has no"),
    "the system": (call("torch.os.system", {"as_string": "touch marker"}), "not on the list of operators"),
    "dots": (call("torch.ops.aten.relu.default.__class__", {"as_int": 1}), "not on the list of operators"),
    "an attribute": (call("torch.ops.aten.__dict__.items", {"as_int": 1}), "not on the list of operators"),
    "a file": (call("torch.ops.aten.from_file.default", {"as_string": "marker"}), "not on the list of operators"),
    "a library": (call("torch.ops.evil.op.default", {"as_int": 1}), "not on the list of operators"),
    "a higher order": (call("torch.ops.higher_order.cond", {"as_int": 1}), "not on the list of operators"),
    "an extension": (call("#evil:op", {"as_int": 1}), "not on the list of operators"),
    "a method": (call("_operator.methodcaller", {"as_string": "x"}), "not on the list of operators"),
    "a power": (call("_operator.pow", {"as_int": 1}), "not on the list of operators"),
    "an operator as argument": (call("torch.ops.aten.relu.default", {"as_operator": "torch.os.system"}), "has no"),
    "a graph as argument": (call("torch.ops.aten.relu.default", {"as_graph": {}}), "has no"),
    "an object as argument": (call("torch.ops.aten.relu.default", {"as_custom_obj": {}}), "has no"),
    "a text as argument": (call("torch.ops.aten.relu.default", {"as_string": "a/b"}), "an option is not a word"),
    "a name that is code": ({PROGRAM: of_json(rename)}, "a name is not an identifier"),
    "a field that is not known": (program(new=1), "has other fields"),
    "a symbol that counts for ever": (
        program(range_constraints={"u99999999999": {"min_val": 0, "max_val": 1}}), "range of something other",
    ),
    "a verifier": (program(verifiers=["EVIL"]), "expected one of"),
    "no object": ({PROGRAM: lambda data: b"[]"}, "has other fields"),
    "no JSON": ({PROGRAM: lambda data: b"{"}, "cannot be read"),
    "deep JSON": ({PROGRAM: lambda data: DEEP.encode()}, "cannot be read"),
    "a pickled weight": (weight(use_pickle=True), "pickled data"),
    "pickled inputs": ({"data/sample_inputs/model.pt": lambda data: b"x"}, "pickled data"),
    "a weight elsewhere": (weight(path_name="../../etc/passwd"), "not one"),
    "a weight that is missing": (weight(path_name="weight_999"), "outside of its file"),
    "a weight that is larger": (meta(sizes=[{"as_int": 1 << 40}] * 4), "outside of its file"),
    "a weight from behind": (meta(storage_offset={"as_int": 100}), "outside of its file"),
    "a weight of strides": (meta(strides=[{"as_int": 1 << 30}] * 4), "outside of its file"),
    "a weight from before": (meta(storage_offset={"as_int": -1}), "no plain shape"),
    "a weight without a shape": (meta(strides=[]), "no plain shape"),
    "a library for AOT": ({"data/aotinductor/model/evil.so": lambda data: b"x"}, "does not write"),
    "the layout of old": ({"data/weights/model.pt": lambda data: b"x"}, "does not write"),
    "no program": ({PROGRAM: None}, "lacks"),
}  # fmt: skip


@pytest.mark.parametrize("name", PT2)
def test_programs_that_are_refused(models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    changes, message = PT2[name]
    path = rewrite(models["pt2"], tmp_path / "crafted.pt2", dict(changes))
    if message is None:  # harmless: loaded, or refused by torch
        return
    for load in (check_model, load_network):
        with pytest.raises(ModelError, match=message):
            load(path)
    assert not (tmp_path / "marker").exists()


def test_what_torch_itself_would_run(models, tmp_path, monkeypatch):
    """Two of the crafted programs do run code in torch.export.load: ours refuses them."""
    code = (
        "import sys, torch\nfor name in sys.argv[1:]:\n    try: torch.export.load(name)\n    except Exception: 0"
    )
    (tmp_path / "evil.py").write_text("open('imported', 'w')\nimport enum\nclass X(enum.Enum): A = 1\n")
    first = rewrite(models["pt2"], tmp_path / "1.pt2", dict(PT2["code as an expression"][0]))
    second = rewrite(models["pt2"], tmp_path / "2.pt2", dict(PT2["a module of inputs"][0]))
    done = child(code, first, second, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "marker").exists() and (tmp_path / "imported").exists()
    with pytest.raises(ModelError, match=r"is refused: .* --trust_model"):
        load_network(first)
    (tmp_path / "marker").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="damaged"):  # it ran, and then torch found no expression
        load_network(first, trust_model=True)
    assert (tmp_path / "marker").exists(), "--trust_model is what it says"


@pytest.mark.parametrize(
    "text",
    ["Symbol('s77', positive=True, integer=True)", "Mul(Integer(4), Symbol('s1', integer=True))",
     "4*s77 + 1 - 2//3", "Add(s1, Max(2, -3), FloorDiv(s1, 2))", "12"],
)  # fmt: skip
def test_expressions_of_sizes_are_taken(text):
    from rsp.shared.learning.formats.program import _expression

    _expression(text)


@pytest.mark.parametrize(
    "text",
    ["f(1)", "Symbol('x.y')", "Symbol('s1', real=print)", "Symbol(s1)", "[1 for s1 in s2]", "s1.args", "s1[0]",
     "1.5", "True", "'s1'", "Add()", "Integer(s1)", "Mul(*s1)", "lambda: 1", "s1 if s1 else 1", "s1 ** s1", "",
     "é", "__import__", "(s1 := 2)", 3, None, ["s1"]],
)  # fmt: skip
def test_expressions_of_anything_else_are_not(text):
    from rsp.shared.learning.formats.program import _expression

    with pytest.raises(ModelError, match="an expression is not one of sizes"):
        _expression(text)


# --- TorchScript --------------------------------------------------------------------------------------------


def script(source: Path, out: Path, change, **members) -> Path:
    """Change the code of a TorchScript file."""
    with zipfile.ZipFile(source) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".py")]
    member = name.partition("/")[2]
    return rewrite(source, out, {member: lambda data: change(data.decode()).encode(), **members})


def first_line(line):
    """Put a line before all others of the network."""

    def change(code: str) -> str:
        head, _, rest = code.partition(" -> Tensor:\n")
        return f"{head} -> Tensor:\n    {line}\n{rest}"

    return change


CODE = {
    "a file written": (first_line('_0 = torch.save(x, "marker")'), "calls 'torch.save'"),
    "a file written, as a statement": (first_line('torch.save(x, "marker")'), "a statement that no network has"),
    "a file mapped": (first_line('_0 = torch.from_file("marker", True, 10)'), "calls 'torch.from_file'"),
    "another library": (first_line("_0 = ops.evil.op(x)"), "calls 'ops.evil.op'"),
    "a backend": (first_line("_0 = __torch__.torch.classes.evil.X()"), "calls '__torch__"),
    "a method": (first_line("_0 = x.relu()"), "calls 'x.relu'"),
    "a fork": (first_line("_0 = fork(x)"), "calls 'fork'"),
    "a call of a value": (first_line("_0 = x(x)"), "calls 'x'"),
    "a loop": (first_line("while True:\n      pass"), "a statement that no network has"),
    "an attribute": (first_line("_0 = self.evil"), "an expression that no network has"),
    "an import": (lambda code: f"import evil\n{code}", "not one class"),
    "a second class": (lambda code: f"{code}\nclass Y(Module):\n  pass\n", "not one class"),
    "a second function": (
        lambda code: f"{code}\n  def __setstate__(self, state: Tensor) -> None:\n    return None\n",
        "more than the function",
    ),
    "a type": (first_line("_0 = annotate(__torch__.evil.X, x)"), "a type that no network has"),
    "a long text": (first_line(f'_0 = torch.device("{"x" * 100}")'), "an expression that no network has"),
    "a name that is taken": (first_line("torch = x"), "an assignment that no network has"),
    "no code": (lambda code: "class (", "cannot be read"),
    "deep code": (first_line("_0 = " + "-" * 3000 + "1"), "its code"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_is_refused(models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    change, message = CODE[name]
    path = script(models["jit"], tmp_path / "crafted.jit", change)
    for load in (check_model, load_network):
        with pytest.raises(ModelError, match=message):
            load(path)


def test_what_torchscript_itself_would_write(models, tmp_path):
    line = '_0 = torch.add_(x, torch.reshape(torch.from_file("marker", True, 3072), [1, 3, 32, 32]))'
    path = script(models["jit"], tmp_path / "crafted.jit", first_line(line))
    code = "import sys, torch; torch.jit.load(sys.argv[1])(torch.zeros(1, 3, 32, 32))"
    done = child(code, path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "marker").exists()


def test_torch_reads_pickles_of_torchscript_by_itself_and_calls_nothing(models, tmp_path):
    """What docs/security.md says of TorchScript: its pickles name no Python."""

    class Evil:
        def __reduce__(self):
            return (open, ("marker", "w"))

    crafted = {"constants.pkl": lambda data: pickle.dumps((Evil(),), 2)}
    path = rewrite(models["jit"], tmp_path / "crafted.jit", crafted)
    done = child("import sys, torch; torch.jit.load(sys.argv[1])", path, cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "marker").exists()
    with pytest.raises(ModelError, match="which no network needs"):
        load_network(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"torch\nFloatStorage", b"torch\nLongStorage", "does not have"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter", "names 'torch._utils._rebuild_parameter'"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", "names 'os.system'"),
        (b"cpu", b"cud", "unknown way"),
        (b".", b"(.", "damaged|no network needs"),
    ],
)
def test_constants_that_are_refused(models, tmp_path, old, new, message):
    changes = {"constants.pkl": lambda data: data.replace(old, new)}
    path = rewrite(models["jit"], tmp_path / "crafted.jit", changes)
    with pytest.raises(ModelError, match=message):
        load_network(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "count", "message"),
    [
        ((1 << 30,), (1,), 0, 216, "outside of its storage"),
        ((2, 2), (1 << 40, 1), 0, 216, "outside of its storage"),
        ((2,), (1,), 215, 216, "outside of its storage"),
        ((2,), (-1,), 5, 216, "no plain shape"),
        ((2,), (1, 1), 0, 216, "no plain shape"),
        ((2,), (1,), 0, 1 << 40, "which it does not have"),
    ],
)
def test_constants_that_reach_beyond_their_storage(models, tmp_path, shape, strides, offset, count, message):
    """torch reads whatever lies there: it trusts what the pickle says."""

    class Saved:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, (STORED, offset, shape, strides, False, {}))

    STORED = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if thing is STORED else None

    def constants(data: bytes) -> bytes:
        target = io.BytesIO()
        Pickler(target, 2).dump((Saved(),))
        return target.getvalue()

    path = rewrite(models["jit"], tmp_path / "crafted.jit", {"constants.pkl": constants})
    with pytest.raises(ModelError, match=message):
        load_network(path)


# --- ONNX ---------------------------------------------------------------------------------------------------


def onnx_file(models, tmp_path, change) -> Path:
    import onnx

    model = onnx.load(str(models["onnx"]))
    change(model)
    kept = [entry for entry in model.metadata_props if entry.key != "sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path = tmp_path / "crafted.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(model):
    """Take a weight from another file."""
    tensor = next(entry for entry in model.graph.initializer if len(entry.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in {"location": "secret", "offset": "0"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def nested(model):
    """Hide such a weight in an attribute of a node."""
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "value", 4
    attribute.t.data_location = 1


def enormous(model):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 30, 1 << 30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "in another file"),
        (nested, "in another file"),
        (enormous, "more than the file holds"),
        (lambda model: setattr(model.graph.node[3], "domain", "com.evil"), "'com.evil'"),
        (lambda model: setattr(model.opset_import.add(), "domain", "com.evil"), "'com.evil'"),
    ],
)
def test_onnx_that_is_refused(models, tmp_path, change, message):
    path = onnx_file(models, tmp_path, change)
    for load in (check_model, load_network):
        with pytest.raises(ModelError, match=message):
            load(path)


def test_what_onnxruntime_itself_would_read(models, tmp_path):
    import onnxruntime

    path = onnx_file(models, tmp_path, external)
    (tmp_path / "secret").write_bytes(np.full(1 << 16, 0.5, np.float32).tobytes())
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (tmp_path / "secret").unlink()
    with pytest.raises(Exception, match="secret"):
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# --- archives -----------------------------------------------------------------------------------------------


def archive_of(path: Path, members, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            with pytest.warns(UserWarning) if name in file.namelist() else nullcontext():
                file.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a/archive_format", b"pt2"), ("a/archive_format", b"pt2")], "twice"),
        ([("a/archive_format", b"pt2"), ("b/x", b"")], "not a name of an export"),
        ([("a/archive_format", b"pt2"), ("a/../x", b"")], "not a name of an export"),
        ([("a/archive_format", b"pt2"), ("/etc/passwd", b"")], "not a name of an export"),
        ([("a/archive_format", b"pt2"), ("a/x\\..\\y", b"")], "not a name of an export"),
        ([("a/archive_format", b"pt2"), ("a/", b"")], "not a name of an export"),
        ([("archive_format", b"pt2")], "not a name of an export"),
        ([("a/archive_format", b"pt2"), *[(f"a/{n}", b"") for n in range(100)]], "101 members, the limit is 99"),
    ],
)
def test_archives_that_are_refused(tmp_path, monkeypatch, members, message):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 99)
    with pytest.raises(ModelError, match=message):
        load_network(archive_of(tmp_path / "crafted.pt2", members))


def test_a_zip_bomb(tmp_path):
    """200 MB of nothing in 200 KB, in one member and in many; nothing is unpacked."""
    zeros = b"0" * (40 << 20)
    one = archive_of(tmp_path / "1.pt2", [("a/archive_format", b""), ("a/x", zeros * 2)], zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="unpacks to 83886080 bytes"):
        load_network(one)
    many = archive_of(tmp_path / "2.pt2", [(f"a/{n}", zeros) for n in range(2)], zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="zip bomb"):
        load_network(many)


def test_an_archive_whose_members_overlap(models, tmp_path):
    """The same bytes under many names unpack to more than the file holds."""
    data = models["pt2"].read_bytes()
    start = data.index(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    directory = data[start:end].replace(b"weight_0", b"weight_x")
    count = data[start:end].count(b"PK\1\2") * 2
    tail = bytearray(data[end:])
    tail[8:12] = count.to_bytes(2, "little") * 2
    tail[12:16] = (2 * (end - start)).to_bytes(4, "little")
    path = tmp_path / "crafted.pt2"
    path.write_bytes(data[:end] + directory + tail)
    with pytest.raises(ModelError, match=r"twice|zip bomb|damaged"):
        load_network(path)


def test_what_is_handed_to_torch_is_what_was_checked(models):
    """The archive that torch gets is one of ours, whole for any reader, and reads as a file does."""
    from rsp.shared.learning.formats.pt2 import clean_pt2

    checked = clean_pt2(models["pt2"])
    data = checked.readall()
    with zipfile.ZipFile(io.BytesIO(data)) as copy, zipfile.ZipFile(models["pt2"]) as original:
        assert copy.testzip() is None
        left = set(original.namelist()) - set(copy.namelist())
        assert {name.partition("/")[2] for name in left} == {"extra/card"}
        for name in copy.namelist():
            assert name.endswith("model.json") or copy.read(name) == original.read(name)
    for position, size in ((0, 10), (len(data) - 5, 10), (100, 50_000)):
        checked.seek(position)
        assert checked.read(size) == data[position : position + size] and checked.tell() <= len(data)
    assert checked.seek(0, os.SEEK_END) == len(data) and checked.read(1) == b""


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["checkpoint", "pt2", "jit", "onnx"])
def test_a_flipped_bit_among_the_weights_is_found(models, tmp_path, kind):
    """Without a digest such a model would answer, wrongly."""
    data = bytearray(models[kind].read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / models[kind].name
    path.write_bytes(data)
    for load in (check_model, lambda path: check_model(path, trust_model=True), load_network):
        with pytest.raises(ModelError, match="damaged"):
            load(path)


FLIPS = """
import random, sys
from pathlib import Path
from rsp.shared.errors import ModelError
from rsp.shared.learning.formats import load_network
ended = {"loaded": 0, "refused": 0}
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        load_network(Path(name))
        ended["loaded"] += 1
    except ModelError as error:
        assert str(error)
        ended["refused"] += 1
print(ended)
"""


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Change a byte or two, cut, or repeat a piece."""
    changed = bytearray(data)
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            changed[at] = rng.randrange(256)
            changed[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            del changed[at : at + rng.randrange(1, 50)]
        case 3:
            changed[at:at] = changed[at : at + rng.randrange(1, 50)]
    return bytes(changed)


@pytest.mark.slow
def test_damage_of_every_kind_is_an_error_and_no_crash(models, tmp_path):
    """With checksums made right again, so that the checks behind them are what must hold."""
    rng = random.Random(7)
    paths = []
    counts = {"checkpoint": 15, "pt2": 5, "jit": 40, "onnx": 40}
    for kind, number in [(kind, number) for kind, count in counts.items() for number in range(count)]:
        path = tmp_path / f"{number}.{kind}"
        if kind == "pt2":
            member = rng.choice([PROGRAM, PROGRAM, WEIGHTS])
            rewrite(models[kind], path, {member: lambda data: flipped(data, rng)})
        elif kind == "jit":
            member = rng.choice(["constants.pkl", "data.pkl", None])
            if member is None:
                script(models[kind], path, lambda text: flipped(text.encode(), rng).decode("utf-8", "replace"))
            else:
                rewrite(models[kind], path, {member: lambda data: flipped(data, rng)})
        else:
            data = models[kind].read_bytes()
            if kind == "onnx":  # without its digest
                data = data[: data.rindex(b"sha256") - 4]
            head = flipped(data[:20_000], rng) if number % 2 else data[:20_000]
            path.write_bytes(head + (data[20_000:] if number % 2 else flipped(data[20_000:], rng)))
        paths.append(path)
    done = child(FLIPS, *paths)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "data",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{" + b" " * 99,
        (2).to_bytes(8, "little") + b"{}",
        (300 << 20).to_bytes(8, "little") + b"{" + b" " * 100,
        b"\x08" + b"\xff" * 40,
        b"\x08\x0d\x3a\xff\xff\xff\xff\x0f",
        b"PK\x03\x04" + b"\0" * 60,
    ],
)
def test_headers_that_claim_too_much(tmp_path, data):
    (tmp_path / "crafted").write_bytes(data)
    for load in (check_model, load_network):
        with pytest.raises(ModelError):
            load(tmp_path / "crafted")


def test_safetensors_whose_offsets_are_wrong(models, tmp_path):
    data = models["checkpoint"].read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first = next(name for name in header if name != "__metadata__")
    for offsets in ([0, 1 << 50], [8, 4], [-4, 0]):
        header[first]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        path = tmp_path / "crafted.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        with pytest.raises(ModelError, match="damaged"):
            load_network(path)


# --- what must go on working --------------------------------------------------------------------------------

SMALL = {
    "resnet50": encoders._resnet(None, "bottleneck", [1, 1, 1, 1], embedding_size=8),
    "convnextv2-atto": (None, "convnextv2", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}),
    "swin-tiny": (None, "swin", {"depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "embed_dim": 8}),
}
SMALL["resnet50"][2]["hidden_sizes"] = [16, 16, 32, 32]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nn", "encoder"),
    [
        ("unet", "resnet50"), ("unet", "convnextv2-atto"), ("unet", "swin-tiny"), ("segformer", "tiny"),
        ("upernet", "tiny"),
    ],
)  # fmt: skip
def test_exports_of_every_network_are_taken(tmp_path, monkeypatch, nn, encoder):
    """Of each kind of network and encoder a small one: a list that lacks one of their operators fails here."""
    for name, shape in SMALL.items():
        monkeypatch.setitem(encoders.ENCODERS, name, shape)
    card = make_card(nn, encoder, tile_size=64, overlap=0)
    torch.manual_seed(0)
    config = ModelConfig(nn=nn, encoder=encoder, pretrained=False, num_filters=4)
    network = build_model(config, 3, 2).eval()
    for kind in ("pt2", "jit"):  # programs; what is checked of ONNX is the same for all
        write_model(tmp_path / kind, kind, network, card)
        assert check_model(tmp_path / kind).nn == nn
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = folded(network)(images)
        for kind in ("pt2", "jit"):
            loaded, _, _ = load_network(tmp_path / kind)
            assert torch.equal(loaded(images), expected), kind
