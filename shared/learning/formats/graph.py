"""Running the program of a torch.export file: its nodes one after the other, each an operator that was checked.

torch's own way (`torch.export.load`) imports its compiler, makes Python source of the program and compiles it:
1.6 s of CPU for every worker that starts. A program that `clean_program` let through is only a list of operators
with their arguments; calling them takes no more than this module. The operators, and so the answers, are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rsp.shared.errors import ModelError

# By the numbers that torch/_export/serde/schema.py gives them.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip


class _Place(int):
    """Where among the values of a run something is that a node takes or gives."""


@dataclass
class _Step:
    """A call of an operator; arguments may be places, or lists that hold places."""

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    answer: _Place | list[_Place]
    done: list[_Place] = field(default_factory=list)  # what no later step takes


class Graph:
    """A network made of a program and its weights; threads may share it.

    Args:
        program: The JSON of the program, as `rsp.shared.learning.formats.program.clean_program` let it through.
        weights: The tensors that it names, on `device`.
        device: Where it computes.

    Attributes:
        shape: Of the input that it takes; None where an axis may have several lengths.

    Raises:
        ModelError: the program contradicts itself, or uses what an export of ours does not.
    """

    def __init__(self, program: Any, weights: Mapping[str, torch.Tensor], device: str) -> None:
        self._device = torch.device(device)
        self._places: dict[str, _Place] = {}
        self._weights: list[tuple[_Place, torch.Tensor]] = []
        graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
        taken: list[str] = []
        for spec in signature["input_specs"]:
            ((kind, entry),) = spec.items()
            if kind == "user_input":
                taken.append(entry["arg"]["as_tensor"]["name"])
                continue
            name = entry[f"{kind}_name"]
            if name not in weights:
                raise ModelError(f"the weight {name!r} is missing")
            self._weights.append((self._bind(entry["arg"]["name"]), weights[name]))
        given = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
        if len(taken) != 1 or len(given) != 1 or taken[0] not in graph["tensor_values"]:
            raise ModelError("the program takes or gives something other than one tensor")
        self.shape = [side.get("as_int") for side in graph["tensor_values"][taken[0]]["sizes"]]
        self._input = self._bind(taken[0])
        self._steps = [self._step(node) for node in graph["nodes"]]
        self._output = self._place(given[0])
        self._free_early()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return what the program answers."""
        values: list[Any] = [None] * len(self._places)
        for place, weight in self._weights:
            values[place] = weight
        values[self._input] = batch
        for step in self._steps:
            answer = step.function(
                *[_filled(argument, values) for argument in step.arguments],
                **{name: _filled(argument, values) for name, argument in step.keywords.items()},
            )
            if isinstance(step.answer, _Place):
                values[step.answer] = answer
            elif step.answer:  # an assertion answers nothing
                for place, part in zip(step.answer, answer, strict=True):
                    values[place] = part
            for place in step.done:
                values[place] = None
        answered: torch.Tensor = values[self._output]
        return answered

    def _bind(self, name: str) -> _Place:
        return self._places.setdefault(name, _Place(len(self._places)))

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise ModelError(f"the program uses {name!r} before it is computed")
        return self._places[name]

    def _step(self, node: Any) -> _Step:
        target: str = node["target"]
        values = [self._value(entry["arg"]) for entry in node["inputs"]]
        if not target.startswith("torch.ops."):  # arithmetic on sizes
            home, _, name = target.rpartition(".")
            function = getattr({"_operator": operator, "torch": torch}[home], name)
            return _Step(function, values, {}, self._answer(node["outputs"]))
        function = operator.attrgetter(target.removeprefix("torch."))(torch)
        named = dict(zip((entry["name"] for entry in node["inputs"]), values, strict=True))
        arguments, keywords, gap = [], {}, len(named) != len(values)
        for argument in function._schema.arguments:
            if argument.name not in named:
                gap = True
            elif gap or argument.kwarg_only:
                keywords[argument.name] = named.pop(argument.name)
            else:
                arguments.append(named.pop(argument.name))
        if named:
            raise ModelError(f"{target} has no argument {min(named)!r}")
        return _Step(function, arguments, keywords, self._answer(node["outputs"]))

    def _answer(self, outputs: Any) -> _Place | list[_Place]:
        """Return where the answer of a node goes, or each part of it."""
        places: list[_Place] = []
        for output in outputs:
            ((kind, value),) = output.items()
            if kind == "as_tensors" and len(outputs) == 1:
                return [self._bind(item["name"]) for item in value]
            name = value.get("as_name", value.get("name")) if isinstance(value, dict) else None
            # What nobody asks for has no name.
            places.append(self._bind(f"no {len(self._places)}" if name is None else name))
        return places[0] if len(places) == 1 else places

    def _value(self, argument: Any) -> Any:
        """Return an argument of a node: a value, a place, or a list of these."""
        ((kind, value),) = argument.items()
        match kind:
            case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string":
                return value
            case "as_float":
                return float(value)
            case "as_floats":
                return [float(item) for item in value]
            case "as_none":
                return None
            case "as_tensor":
                return self._place(value["name"])
            case "as_tensors":
                return [self._place(item["name"]) for item in value]
            case "as_optional_tensors":
                return [self._value(item) for item in value]
            case "as_name":
                return self._place(value)
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return self._value(value)
            case "as_sym_ints" | "as_sym_floats":
                return [self._value(item) for item in value]
            case "as_scalar_type":
                return DTYPES[value]
            case "as_memory_format":
                return _MEMORY_FORMATS[value]
            case "as_layout":
                return torch.strided
            case "as_device":
                return self._device
        raise ModelError(f"an argument of the program is of an unknown kind: {kind}")

    def _free_early(self) -> None:
        """Note with each step what no later one takes, so that memory holds a few layers and not all."""
        wanted = {self._output, *(place for place, _ in self._weights)}
        for step in reversed(self._steps):
            answered = [step.answer] if isinstance(step.answer, _Place) else step.answer
            for place in [*answered, *_places([*step.arguments, *step.keywords.values()])]:
                if place not in wanted:
                    wanted.add(place)
                    step.done.append(place)


def _filled(argument: Any, values: list[Any]) -> Any:
    """Return an argument with what is at its places."""
    if isinstance(argument, _Place):
        return values[argument]
    if isinstance(argument, list):
        return [_filled(item, values) for item in argument]
    return argument


def _places(arguments: list[Any]) -> Iterator[_Place]:
    for argument in arguments:
        if isinstance(argument, _Place):
            yield argument
        elif isinstance(argument, list):
            yield from _places(argument)
