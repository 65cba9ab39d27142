"""Checks what `torch.export` would evaluate, import or look up by name while it loads a program.

torch 2.13 does all of these with the JSON of a program (torch/_export/serde/serialize.py and what it calls):
symbolic expressions go to sympy, whose parser is Python's `eval`; the description of the inputs imports modules by
name; targets of nodes, and operators among their arguments, are found by `getattr` from `torch`, `operator` and
`math`; `guards_code` goes to `exec`; names of nodes and weights end in source code that is generated and compiled;
constants may be pickles. So every part is walked along the schema, a field that is not known is refused, and only
what passed is handed to torch, written out again.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any

from rsp.shared.errors import ModelError
from rsp.shared.learning.formats.operators import OPTION, allowed_target

Rule = Callable[[Any], None]

MAX_NODES = 50_000
MAX_LIST = 200_000
# Of 64 bits: a slice to the end of an axis has the largest.
MAX_INT = (1 << 63) - 1
_MAX_EXPRESSION = 1000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,127}|_[A-Za-z0-9][A-Za-z0-9_]{0,126}")
_SYMBOL = re.compile(r"s[0-9]{1,9}")
_RECORD = re.compile(r"(weight|tensor)_[0-9]{1,6}")
_FUNCTIONS = {"Add", "Mul", "FloorDiv", "CeilDiv", "Mod", "PythonMod", "Max", "Min"}
# One tensor in, one tensor out: pytree's description of (x,) and {}, and of a tensor.
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_ARGUMENTS = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]}
_KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
_IN = [1, {"type": "builtins.tuple", "context": "null", "children_spec": [_ARGUMENTS, _KEYWORDS]}]
_OUT = [1, _LEAF]
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}  # by torch's ScalarType
_METADATA = {"nn_module_stack", "torch_fn", "source_fn_stack", "stack_trace", "from_node", "custom"}


def clean_program(text: bytes) -> bytes:
    """Return the program of an export as torch may load it: what is known and harmless, and nothing else.

    Raises:
        ModelError: it holds what no export of a network of ours holds; says what.
    """
    program = read_json(text)
    _PROGRAM(program)
    module = program["graph_module"]
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}  # where in the network it was: torch looks some of that up by name
    signature = module["module_call_graph"][0]["signature"]
    signature |= {"in_spec": json.dumps(_IN), "out_spec": json.dumps(_OUT)}
    module["module_call_graph"] = [{"fqn": "", "signature": signature}]
    return json.dumps(program).encode()


def check_tensors(text: bytes, sizes: Mapping[str, int]) -> None:
    """Raise where a table of weights names a pickle, another file, or more than the file has.

    Args:
        text: `model_weights_config.json`, or that of the constants.
        sizes: Bytes of each record beside it, by name.
    """
    table = read_json(text)
    _record({"config": _mapping(_weight, _dotted)})(table)
    for name, entry in table["config"].items():
        meta = entry["tensor_meta"]
        counts, strides = ([value.get("as_int") for value in meta[key]] for key in ("sizes", "strides"))
        offset = meta["storage_offset"].get("as_int")
        if (
            None in (*counts, *strides, offset)
            or min((*counts, *strides, offset)) < 0
            or len(counts) != len(strides)
        ):
            raise ModelError(f"the weight {name!r} has no plain shape")
        end = 0 if 0 in counts else offset + 1 + sum((c - 1) * s for c, s in zip(counts, strides, strict=True))
        size = sizes.get(entry["path_name"])
        if size is None or size % _ITEM_BYTES[meta["dtype"]] or end * _ITEM_BYTES[meta["dtype"]] > size:
            raise ModelError(f"the weight {name!r} lies outside of its file")


def read_json(text: bytes) -> Any:
    """Read JSON; raise `ModelError` where it is damaged or nested beyond reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the description of the program cannot be read: {error}") from error


# --- rules: each takes a value and raises where it is not as it should be -----------------------------------


def _refuse(what: str, value: Any) -> ModelError:
    shown = value if isinstance(value, str) else json.dumps(value, default=repr)
    return ModelError(f"{what} {shown[:120]!r}")


def _record(fields: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object that has all of `fields`, maybe some of `optional`, and no other."""
    every = {**fields, **(optional or {})}
    needed = set(fields)

    def rule(value: Any) -> None:
        if not isinstance(value, dict) or not needed <= value.keys() <= every.keys():
            raise _refuse(
                "an object has other fields than it should:", sorted(value) if isinstance(value, dict) else value
            )
        for name, item in value.items():
            every[name](item)

    return rule


def _union(choices: Mapping[str, Rule]) -> Rule:
    """An object of one field, whose name says what it is."""

    def rule(value: Any) -> None:
        if not isinstance(value, dict) or len(value) != 1:
            raise _refuse("expected an object of one field, got", value)
        ((kind, item),) = value.items()
        if kind not in choices:
            raise _refuse("a program of a network has no", kind)
        choices[kind](item)

    return rule


def _rows(rule: Rule, limit: int = MAX_LIST) -> Rule:
    def check(value: Any) -> None:
        if not isinstance(value, list) or len(value) > limit:
            raise _refuse(f"expected a list of up to {limit}, got", value)
        for item in value:
            rule(item)

    return check


def _mapping(rule: Rule, key: Rule) -> Rule:
    def check(value: Any) -> None:
        if not isinstance(value, dict) or len(value) > MAX_LIST:
            raise _refuse("expected an object, got", value)
        for name, item in value.items():
            key(name)
            rule(item)

    return check


def _text(what: str, accept: Callable[[str], Any]) -> Rule:
    def rule(value: Any) -> None:
        if not isinstance(value, str) or not accept(value):
            raise _refuse(what, value)

    return rule


def _number(low: int, high: int) -> Rule:
    def rule(value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _refuse(f"expected a whole number from {low} to {high}, got", value)

    return rule


def _flag(value: Any) -> None:
    if type(value) is not bool:
        raise _refuse("expected true or false, got", value)


def _float(value: Any) -> None:
    if type(value) not in (int, float) and value not in ("Infinity", "-Infinity", "NaN"):
        raise _refuse("expected a number, got", value)


def _nothing(value: Any) -> None:
    if value not in (None, [], {}):
        raise _refuse("a program of a network has no", value)


def _no_pickle(value: Any) -> None:
    if value is not False:
        raise ModelError("a weight is stored as pickled data, which could run any code")


def _maybe(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _one_of(*allowed: Any) -> Rule:
    def rule(value: Any) -> None:
        if value not in allowed or isinstance(value, bool):
            raise _refuse(f"expected one of {allowed}, got", value)

    return rule


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and not keyword.iskeyword(text) and not text.startswith("__")


def _is_dotted(text: str) -> bool:
    return all(map(_PART.fullmatch, text.split(".")))


def _expression(value: Any) -> None:
    """A symbolic size, as `Mul(Integer(4), Symbol('s77', positive=True, integer=True))` or `4*s77 + 1`."""
    try:
        if len(value) > _MAX_EXPRESSION:
            raise ValueError("it is too long")
        _walk(ast.parse(value, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise _refuse("an expression is not one of sizes:", value) from error


def _walk(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int(number)) if type(number) is int and number <= MAX_INT:
            return
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            return
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _walk(inner)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv(), right=right):
            _walk(left)
            return _walk(right)
        case ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant() | ast.UnaryOp() as inner], keywords=[]):
            return _walk(inner)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            told = {word.arg: getattr(word.value, "value", None) for word in keywords}
            if _SYMBOL.fullmatch(name) and told.keys() <= {"positive", "integer"} and set(told.values()) <= {True}:
                return
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            for argument in arguments:
                _walk(argument)
            return
    raise ValueError(ast.dump(node))


# --- the schema ---------------------------------------------------------------------------------------------

_int = _number(-MAX_INT - 1, MAX_INT)
_name = _text("a name is not an identifier:", _is_name)
_dotted = _text("the name of a weight is not one:", _is_dotted)
_option = _text("an option is not a word:", OPTION.fullmatch)
_target = _text("not on the list of operators that compute:", allowed_target)
_words = _text("expected a text, got", lambda text: True)

_hint = _maybe(_union({"as_int": _int, "as_bool": _flag, "as_float": _float}))
_expr = _record({"expr_str": _expression}, {"hint": _hint})
_sym_int = _union({"as_expr": _expr, "as_int": _int})
_sym_float = _union({"as_expr": _expr, "as_float": _float})
_sym_bool = _union({"as_expr": _expr, "as_bool": _flag})
# `null`, or cpu: a program is moved to a GPU once it is loaded.
_device = _record({"type": _one_of("cpu")}, {"index": _nothing})
_dtype = _one_of(*_ITEM_BYTES)
_layout = _one_of(7)  # strided
_meta = _record(
    {
        "dtype": _dtype, "sizes": _rows(_sym_int, 64), "requires_grad": _flag, "device": _device,
        "strides": _rows(_sym_int, 64), "storage_offset": _sym_int, "layout": _layout,
    }
)  # fmt: skip
_tensor = _record({"name": _name})
_argument = _union(
    {
        "as_none": _flag,
        "as_tensor": _tensor,
        "as_tensors": _rows(_tensor),
        "as_optional_tensors": _rows(_union({"as_tensor": _tensor, "as_none": _flag})),
        "as_int": _int,
        "as_ints": _rows(_int),
        "as_float": _float,
        "as_floats": _rows(_float),
        "as_bool": _flag,
        "as_bools": _rows(_flag),
        "as_string": _option,
        "as_sym_int": _union({"as_name": _name, "as_int": _int}),
        "as_sym_ints": _rows(_union({"as_name": _name, "as_int": _int})),
        "as_sym_float": _union({"as_name": _name, "as_float": _float}),
        "as_sym_floats": _rows(_union({"as_name": _name, "as_float": _float})),
        "as_sym_bool": _union({"as_name": _name, "as_bool": _flag}),
        "as_scalar_type": _dtype,
        "as_memory_format": _number(1, 4),
        "as_layout": _layout,
        "as_device": _device,
    }
)
_node = _record(
    {
        "target": _target,
        "inputs": _rows(_record({"name": _name, "arg": _argument}, {"kind": _maybe(_number(0, 2))})),
        "outputs": _rows(_argument),
        "metadata": _mapping(_words, _text("unknown metadata:", _METADATA.__contains__)),
    },
    {"is_hop_single_tensor_return": _maybe(_flag), "name": _maybe(_name)},
)
_graph = _record(
    {
        "inputs": _rows(_union({"as_tensor": _tensor})),
        "outputs": _rows(_union({"as_tensor": _tensor}), 1),
        "nodes": _rows(_node, MAX_NODES),
        "tensor_values": _mapping(_meta, _name),
        "sym_int_values": _mapping(_sym_int, _name),
        "sym_bool_values": _mapping(_sym_bool, _name),
    },
    {
        "is_single_tensor_return": _flag,
        "custom_obj_values": _nothing,
        "sym_float_values": _mapping(_sym_float, _name),
    },
)
_tensor_only = _record({"arg": _union({"as_tensor": _tensor})})
_signature = _record(
    {
        "input_specs": _rows(
            _union(
                {
                    "user_input": _tensor_only,
                    "parameter": _record({"arg": _tensor, "parameter_name": _dotted}),
                    "buffer": _record({"arg": _tensor, "buffer_name": _dotted, "persistent": _flag}),
                    "tensor_constant": _record({"arg": _tensor, "tensor_constant_name": _dotted}),
                }
            )
        ),
        "output_specs": _rows(_union({"user_output": _tensor_only}), 1),
    }
)


def _spec(expected: list[Any]) -> Rule:
    """The shape of the arguments or of the answer; torch imports what other shapes name."""
    return _text(
        "the program takes or gives something other than one tensor:",
        lambda text: read_json(text.encode()) == expected,
    )


_call = _record(
    {"inputs": _nothing, "outputs": _nothing, "in_spec": _spec(_IN), "out_spec": _spec(_OUT)},
    {"forward_arg_names": _maybe(_rows(_name, 1))},
)


def _calls(value: Any) -> None:
    """The modules of the network, of which only the network itself has a signature."""
    _rows(_record({"fqn": _words}, {"signature": _maybe(_call)}))(value)
    if not value or value[0]["fqn"] or not value[0].get("signature"):
        raise _refuse("the program has no signature, it begins with", value[:1])


_PROGRAM = _record(
    {
        "graph_module": _record(
            {"graph": _graph, "signature": _signature, "module_call_graph": _calls},
            {"metadata": _nothing, "treespec_namedtuple_fields": _nothing},
        ),
        "opset_version": _record({"aten": _number(1, 1000)}),
        "range_constraints": _mapping(
            _record({"min_val": _maybe(_int), "max_val": _maybe(_int)}),
            _text("the range of something other than a size:", _SYMBOL.fullmatch),
        ),
        "schema_version": _record({"major": _number(0, 1000), "minor": _number(0, 1000)}),
    },
    {
        "verifiers": _rows(_one_of("TRAINING", "ATEN", "EDGE"), 4),
        "torch_version": _words,
        "guards_code": _nothing,
    },
)
_weight = _record(
    {
        "path_name": _text("the file of a weight is not one:", _RECORD.fullmatch),
        "is_param": _flag,
        "use_pickle": _no_pickle,
        "tensor_meta": _meta,
    }
)
