"""What was judged about candidates: the file beside a pointer that says why a model was deployed, or was not.

Like the rest of a release store it is read strictly: who can write to the store must not decide what is read or
written elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsp.serving.manifest import (
    DIGEST,
    FORMAT,
    MAX_REASON,
    NAME,
    checked,
    dumped,
    expect,
    is_time,
)
from rsp.shared.keys import Key, read_table, shortened

JUDGEMENTS = "judgements.json"
# How many a store remembers of each name.
KEPT = 100
VERDICTS = ("deploy", "keep")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was judged about one candidate. IoUs are those of the classes but the background, 0 to 1.

    Attributes:
        time: When, as `2026-11-25T19:21:26Z`.
        data: 64 hexadecimal digits that change with what was trained on, and how.
        champion: The version that was wanted; empty where nothing was.
        candidate: The version of the candidate.
        verdict: `deploy` or `keep`.
        reason: Why.
        iou: The candidate's on the held-out tiles; None where they have none.
        champion_iou: The champion's on the same tiles; None where it was not compared.
        gain: The difference.
        low: The gain that 90 % of the draws reach.
        high: The gain that 10 % of the draws reach.
        tiles: How many tiles were held out.
        blocks: How many blocks they make.
    """

    time: str
    data: str
    champion: str
    candidate: str
    verdict: str
    reason: str
    iou: float | None = None
    champion_iou: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    tiles: int = 0
    blocks: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the judgement in types of JSON."""
        return asdict(self)


_FILE = (Key("format", "count"), Key("judgements", "rows"))
KEYS = (
    Key("time", "str"), Key("data", "str"), Key("champion", "str"), Key("candidate", "str"), Key("verdict", "str"),
    Key("reason", "str"), Key("iou", "fraction", None), Key("champion_iou", "fraction", None),
    Key("gain", "difference", None), Key("low", "difference", None), Key("high", "difference", None),
    Key("tiles", "int"), Key("blocks", "int"),
)  # fmt: skip


def read_judgement(row: Any, where: str) -> Judgement:
    """Read one judgement; `where` is what messages begin with.

    Raises:
        ReleaseError: a value out of bounds.
        ConfigError: a field that is missing, unknown, or of another type.
    """
    values = read_table(row, KEYS, where)
    expect(is_time(values["time"]), where, f"time: {shortened(values['time'])} is not a time")
    expect(DIGEST.fullmatch(values["data"]), where, "data: expected 64 hexadecimal digits")
    for what in ("champion", "candidate"):
        text = values[what]
        expect(
            NAME.fullmatch(text) or (what == "champion" and not text),
            where,
            f"{what}: {shortened(text)} is no version",
        )
    expect(values["verdict"] in VERDICTS, where, f"verdict: expected one of {', '.join(VERDICTS)}")
    expect(len(values["reason"]) <= MAX_REASON, where, f"reason: more than {MAX_REASON} characters")
    return Judgement(**values)


def read_judgements(text: bytes, where: str) -> list[Judgement]:
    """Read the file of a store, the newest last; raise `ReleaseError` where anything about it is wrong."""

    def read(data: Any, where: str) -> list[Judgement]:
        rows: Sequence[Any] = read_table(data, _FILE, where)["judgements"]
        expect(len(rows) <= KEPT, where, f"more than {KEPT} judgements")
        return [read_judgement(row, where) for row in rows]

    return checked(text, where, read)


def write_judgements(judgements: Sequence[Judgement]) -> bytes:
    """Return what the file of a store holds."""
    return dumped({"format": FORMAT, "judgements": [each.as_dict() for each in judgements[-KEPT:]]})
