"""Which operators a program of a stranger may hold: those of torch's `aten` that compute, and nothing else.

Operators are judged by their schema. What takes plain data (tensors, numbers, flags) and a few options by their
names computes; what takes a file name, a storage, a generator or an object of a class does not, or is refused all
the same. Operators whose names begin with an underscore are torch's own business, and some of them trust their
arguments: of them only those that exports hold are allowed.
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch

# A text among the arguments: the name of a way to compute, as `bilinear`, `a,b->ab`, or a device.
OPTION = re.compile(r"[A-Za-z0-9_,>. -]{0,64}")

# Arithmetic on sizes, and what decides on it. No power: a number could be made to fill the memory.
SYMBOLIC = frozenset(
    {f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "neg")}
    | {f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
    | {f"torch.{name}" for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")}
)

_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z_][A-Za-z0-9_]{0,63})\.([A-Za-z_][A-Za-z0-9_]{0,63})")
_PRIVATE = frozenset(
    {
        "_adaptive_avg_pool2d", "_assert_tensor_metadata", "_convolution", "_log_softmax",
        "_native_batch_norm_legit_no_training", "_softmax", "_to_copy", "_unsafe_view",
        "_scaled_dot_product_flash_attention_for_cpu", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    }
)  # fmt: skip
# Public, and yet they trust their arguments more than others do, give memory as it was left, reach libraries of
# their own, or change what belongs to the process. No network needs them to answer.
_REFUSED = re.compile(
    r"(fbgemm|mkldnn|cudnn|miopen|mps|quantize|quantized|fake_quantize|fused|dequantize|choose|int_repr|q|nested"
    r"|sparse|to_sparse|to_mkldnn|coalesce|copy_sparse|ccol|crow|col|row|resize|set|from|record|segment|lift|data"
    r"|pin|manual|requires|retain|empty|new_empty|lu|lstm_mps|linalg_lu|linalg_ldl|linalg_householder|ormqr|orgqr"
    r"|geqrf|max_unpool\w*|embedding_bag|embedding_renorm|slow)(_.*)?|.*_(loss|backward)(_.*)?|.*backward.*"
)
_DATA = re.compile(r"(Optional\[|List\[)*(Tensor|int|float|bool|number|complex|Device)\]*")
# Arguments that are text, and choose between ways to compute.
_OPTIONS = frozenset(
    {
        "approximate", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p", "pad_mode",
        "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO",
    }
)  # fmt: skip
_TEXT = frozenset({"str", "Optional[str]"})


@lru_cache(maxsize=4096)
def allowed_target(target: str) -> bool:
    """Tell whether a node of an exported program may call this target, as `torch.ops.aten.relu.default`."""
    if target in SYMBOLIC:
        return True
    match = _TARGET.fullmatch(target)
    return match is not None and match[2] in _overloads(match[1])


@lru_cache(maxsize=4096)
def allowed_name(name: str) -> bool:
    """Tell whether TorchScript may call `torch.<name>`: there is a way to call it that is allowed.

    The other ways that TorchScript knows of such a name work on numbers, lists and texts.
    """
    return bool(_overloads(name))


@lru_cache(maxsize=4096)
def _overloads(name: str) -> frozenset[str]:
    """Return the overloads of an operator of `aten` that are allowed."""
    if (name.startswith("_") and name not in _PRIVATE) or _REFUSED.fullmatch(name):
        return frozenset()
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return frozenset()
    found = {key: getattr(packet, key)._schema for key in packet.overloads()}  # type: ignore[no-untyped-call]
    return frozenset(key for key, schema in found.items() if all(map(_plain, schema.arguments)))


def _plain(argument: torch.Argument) -> bool:
    kind = str(argument.type)
    return (kind in _TEXT and argument.name in _OPTIONS) or _DATA.fullmatch(kind) is not None
