"""Models as TorchScript (.jit, .pt): code of a dialect of Python, and the constants that it names.

torch 2.13 reads such a file in C++: the code is compiled when it is loaded and runs when the network is called;
`data.pkl` and `constants.pkl` are read by an unpickler of its own, which knows tensors, plain values and the
classes that the code defines, and never calls Python. What the code can do is what the operators can that it
names, and some of them write files; constants may claim to be larger than their storage, and reading them would
leave it.
"""

from __future__ import annotations

import ast
import io
import pickle
import pickletools
import re
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from rsp.shared.errors import ModelError
from rsp.shared.learning.archives import Archive, Checked, open_archive
from rsp.shared.learning.formats.operators import OPTION, allowed_name

CODE = re.compile(r"code/(__torch__/(?:\w+/)*\w+)\.py")
MEMBERS = re.compile(
    r"data\.pkl|constants\.pkl|constants/\d+|version|byteorder|\.data/(version|serialization_id)|extra/\w+"
    rf"|{CODE.pattern}(\.debug_pkl)?"
)
# Where in which file an operator was written, and what other programs keep.
LEFT_OUT = re.compile(r".*\.debug_pkl|extra/\w+")
MAX_CODE = 4 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_TYPES = {"Tensor", "int", "float", "bool", "number", "Device", "List", "Optional", "Tuple"}
# How numbers and tensors become each other.
_CASTS = {"int", "float", "bool", "ops.prim.NumToTensor"}
_ITEM_BYTES = {
    "Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Half": 2, "BFloat16": 2,
    "Int": 4, "Float": 4, "Long": 8, "Double": 8,
}  # fmt: skip
# No opcode that makes objects of Python, and none that two readers may understand differently.
_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NEWOBJ", "BUILD",
    "REDUCE", "BINPERSID", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "SETITEM", "SETITEMS", "APPEND", "APPENDS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE",
}  # fmt: skip


def write_jit(path: Path, model: nn.Module, example: torch.Tensor, extra: dict[str, str]) -> None:
    """Trace a network; see `rsp.shared.learning.formats.write_model`."""
    traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
    # What torch would fold beyond what is folded already rounds otherwise than the checkpoint does: one pixel in a
    # million would differ.
    frozen = torch.jit.freeze(traced, optimize_numerics=False)
    files = {name: text.encode() for name, text in extra.items()}
    # To an open file: given a name, torch writes that into the archive, and ours is a temporary one.
    with path.open("wb") as file:
        torch.jit.save(frozen, file, _extra_files=files)


def clean_jit(path: Path) -> Checked:
    """Return what torch may load of a file.

    Raises:
        ModelError: it is damaged, or holds what `rsp export` never writes of a network.
    """
    with open_archive(path) as archive:
        archive.require(MEMBERS, ("data.pkl", "constants.pkl"))
        codes = [name for name in archive.sizes if CODE.fullmatch(name)]
        if len(codes) != 1:
            raise ModelError(f"it has {len(codes)} files of code, a network has one")
        match = CODE.fullmatch(codes[0])
        assert match is not None
        name = f"{match[1].replace('/', '.')}.{_check_code(archive.text(codes[0]))}"
        _check_object(archive.text("data.pkl"), name)
        _check_constants(archive)
        return archive.copy({}, LEFT_OUT)


def load_jit(source: IO[bytes] | Checked, device: str) -> nn.Module:
    """Load TorchScript: what `clean_jit` returned, or a file that is trusted."""
    model: nn.Module = torch.jit.load(source, map_location=device)  # type: ignore[no-untyped-call]
    return model


# --- the code -----------------------------------------------------------------------------------------------


def _check_code(text: bytes) -> str:
    """Raise where the code is more than one function of operators that compute; return the name of its class."""
    if len(text) > MAX_CODE:
        raise ModelError(f"its code has {len(text)} bytes, the limit is {MAX_CODE}")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"its code cannot be read: {error}") from error
    match tree.body:
        case [ast.ClassDef(name=name, bases=[ast.Name(id="Module")], keywords=[], decorator_list=[], body=body)]:
            pass
        case _:
            raise ModelError("its code is not one class, as that of a network is")
    functions = [entry for entry in body if not _is_empty_list(entry)]
    match functions:
        case [ast.FunctionDef(name="forward", args=arguments, decorator_list=[], body=statements)] if [
            argument.arg for argument in arguments.args
        ][:1] == ["self"] and len(arguments.args) == 2:
            pass
        case _:
            raise ModelError("its code has more than the function `forward` of one tensor")
    known = {arguments.args[1].arg}
    try:
        for statement in statements:
            _check_statement(statement, known)
    except RecursionError as error:
        raise ModelError("its code is nested too deeply") from error
    return name


def _is_empty_list(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id="__parameters__" | "__buffers__")], value=ast.List(elts=[])):
            return True
    return False


def _check_statement(statement: ast.stmt, known: set[str]) -> None:
    match statement:
        case ast.Assign(targets=[target], value=value):
            _check_value(value, known)
            _bind(target, known)
        case ast.Return(value=ast.expr() as value):
            _check_value(value, known)
        case _:
            raise _refuse("a statement that no network has", statement)


def _bind(target: ast.expr, known: set[str]) -> None:
    match target:
        case ast.Name(id=name) if _NAME.fullmatch(name) and name not in ("torch", "ops", "CONSTANTS", "self"):
            known.add(name)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                _bind(item, known)
        case _:
            raise _refuse("an assignment that no network has", target)


def _check_value(value: ast.expr, known: set[str]) -> None:
    match value:
        case ast.Constant(value=None | bool() | int() | float()):
            return
        case ast.Constant(value=str(text)) if OPTION.fullmatch(text):
            return
        case ast.Name(id=name) if name in known or name in ("inf", "nan"):
            return
        case ast.Attribute(value=ast.Name(id="CONSTANTS"), attr=name) if re.fullmatch(r"c\d{1,6}", name):
            return
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _check_value(inner, known)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                _check_value(item, known)
            return
        case ast.Subscript(value=inner, slice=ast.Constant(value=int()) | ast.UnaryOp(operand=ast.Constant())):
            return _check_value(inner, known)
        case ast.Call(func=ast.Name(id="annotate"), args=[kind, inner], keywords=[]):
            _check_type(kind)
            return _check_value(inner, known)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = ast.unparse(function)
            if name not in _CASTS and not (name.startswith("torch.") and _is_operator(name[6:])):
                raise ModelError(
                    f"its code calls {name[:80]!r}, which is not on the list of operators that compute"
                )
            for argument in [*arguments, *(word.value for word in keywords)]:
                _check_value(argument, known)
            return
    raise _refuse("an expression that no network has", value)


def _is_operator(name: str) -> bool:
    return name == "device" or (_NAME.fullmatch(name) is not None and allowed_name(name))


def _check_type(kind: ast.expr) -> None:
    for node in ast.walk(kind):
        if isinstance(node, ast.Name) and node.id in _TYPES:
            continue
        if not isinstance(node, ast.Subscript | ast.Tuple | ast.Load):
            raise _refuse("a type that no network has", kind)


def _refuse(what: str, node: ast.AST) -> ModelError:
    return ModelError(f"its code has {what}: {ast.unparse(node)[:80]!r}")


# --- the objects --------------------------------------------------------------------------------------------


def _check_object(data: bytes, name: str) -> None:
    """Raise where `data.pkl` is more than one object of the class of the code, without attributes."""

    class Blank:
        def __setstate__(self, state: Any) -> None:
            if state != {}:
                raise ModelError("the network has attributes, which a frozen one does not have")

    found = _unpickle(data, {name: Blank}, None)
    if type(found) is not Blank:
        raise ModelError("data.pkl is not the network of its code")


def _check_constants(archive: Archive) -> None:
    """Raise where a constant is not a tensor, or is said to be larger than what the archive holds of it."""

    def storage(saved: Any) -> tuple[int, int]:
        match saved:
            case ("storage", Storage() as kind, str(key), str(device), int(count)) if device == "cpu":
                size = archive.sizes.get(f"constants/{key}")
                if size != count * kind.item or f"constants/{key}".count("/") != 1:
                    raise ModelError(
                        f"the constant {key[:20]!r} is said to have {count} values, which it does not have"
                    )
                return count, kind.item
        raise ModelError("a constant is stored in an unknown way")

    def tensor(stored: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, *rest: Any) -> str:
        numbers = (offset, *shape, *strides)
        if (
            rest
            or not all(type(number) is int and number >= 0 for number in numbers)
            or len(shape) != len(strides)
        ):
            raise ModelError("a constant has no plain shape")
        end = offset + 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if prod(shape) and end > stored[0]:
            raise ModelError("a constant lies outside of its storage")
        return "tensor"

    kinds = {f"torch.{name}Storage": Storage(item) for name, item in _ITEM_BYTES.items()}
    known: dict[str, Any] = {"torch._utils._rebuild_tensor_v2": tensor, "collections.OrderedDict": dict, **kinds}
    found = _unpickle(archive.text("constants.pkl"), known, storage)
    if not isinstance(found, tuple) or not all(item == "tensor" for item in found):
        raise ModelError("constants.pkl holds something other than tensors")


class Storage:
    """A type of storage as a pickle names it; `item` is the size of a value in bytes."""

    def __init__(self, item: int) -> None:
        self.item = item


def _unpickle(data: bytes, known: dict[str, Any], storage: Any) -> Any:
    """Read a pickle in which only `known` can be named: stand-ins of ours, which look and do nothing."""

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise ModelError(f"a pickle names {f'{module}.{name}'[:80]!r}, which no network needs")
            return known[f"{module}.{name}"]

        def persistent_load(self, saved: Any) -> Any:
            if storage is None:
                raise ModelError("data.pkl holds tensors, which a frozen network has among its constants")
            return storage(saved)

    try:
        strange = {code.name for code, _, _ in pickletools.genops(data)} - _OPCODES
        if strange:
            raise ModelError(f"a pickle uses {min(strange)}, which no network needs")
        return Reader(io.BytesIO(data)).load()
    except ModelError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are operations
        raise ModelError(f"a pickle of it is damaged: {error}") from error
