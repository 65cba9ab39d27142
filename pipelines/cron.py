"""When a schedule runs: crons as Kubeflow Pipelines reads them, with six fields, the second first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from rsp.shared.errors import UsageError

# The names that stand for fields. All are at midnight UTC but the last.
DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
# KFP's scheduler gives up on a cron that meets no time in so many years.
YEARS = 5


class Field(NamedTuple):
    """A field of a cron: what it may hold, and the names that stand for numbers."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


# The fields of github.com/robfig/cron v1, which KFP uses.
FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    Field("day of the week", 0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)


def check_cron(cron: str) -> str:
    """Return a cron expression with single spaces.

    KFP counts six fields, the second first: `0 0 3 * * *` is three o'clock every night. Five, as crontab has
    them, would be taken for something else or refused only after the schedule was made.

    Raises:
        UsageError: it has not six fields, or one of them is out of its range.
    """
    parts = cron.split()
    if len(parts) == 1 and cron in DESCRIPTORS:
        return cron
    if len(parts) == 5:
        raise UsageError(
            f"the cron {cron!r} has five fields, as crontab does; KFP takes six, seconds first: "
            f"--cron '0 {' '.join(parts)}'"
        )
    if len(parts) != 6:
        raise UsageError(f"a cron has six fields (second minute hour day month weekday), got {cron!r}")
    for part, field in zip(parts, FIELDS, strict=True):
        if _values(part, field) is None:
            raise UsageError(
                f"the {field.name} of the cron {cron!r} is {part!r}; expected {field.low} to {field.high}, or *"
            )
    return " ".join(parts)


def next_runs(cron: str, after: datetime, count: int = 3) -> list[datetime]:
    """Return the next times that a cron meets, as KFP's scheduler counts them.

    Where both days are restricted, either of them is enough, as in crontab. Where one of them begins with `*`
    or `?`, also as `*/2`, both must fit.

    Args:
        cron: What `check_cron` returned.
        after: The times are later than this; they are in its time zone (KFP's scheduler is in UTC).
        count: How many.

    Raises:
        UsageError: it meets no date, as the 31st of February.
    """
    from croniter import CroniterBadDateError, croniter

    parts = DESCRIPTORS.get(cron, cron).split()
    values = [_values(part, field) or set() for part, field in zip(parts, FIELDS, strict=True)]
    stars = [any(item[0] in "*?" for item in part.split(",")) for part in parts]
    full = [len(found) == field.high - field.low + 1 for found, field in zip(values, FIELDS, strict=True)]
    either = not (stars[3] or stars[5])
    if either and (full[3] or full[5]):
        # croniter takes a full list of days for a star.
        full[3] = full[5] = True
    # Spelt out, since croniter reads `*/2` and `1,*` otherwise.
    spelt = ["*" if all_ else ",".join(map(str, sorted(found))) for found, all_ in zip(values, full, strict=True)]
    times = croniter(
        " ".join(spelt), after, second_at_beginning=True, day_or=either, max_years_between_matches=YEARS
    )
    try:
        return [times.get_next(datetime) for _ in range(count)]
    except CroniterBadDateError:
        raise UsageError(f"no date meets the cron {cron!r} in the next {YEARS} years") from None


def _values(part: str, field: Field) -> set[int] | None:
    """Return the numbers that a field of a cron stands for; None where it is not valid."""
    found: set[int] = set()
    for item in part.split(","):
        numbers = _item(item, field)
        if numbers is None:
            return None
        found.update(numbers)
    return found


def _item(item: str, field: Field) -> range | None:
    """Return the numbers of one of `*`, `?`, `3`, `3-5`, with or without `/2`; None for anything else."""
    span, slash, step = item.partition("/")
    if slash and not (re.fullmatch("[0-9]+", step) and int(step) > 0):
        return None
    by = int(step) if slash else 1
    if span == "*" or (span == "?" and "day" in field.name):
        return range(field.low, field.high + 1, by)
    numbers = list(_numbers(span, field))
    if None in numbers or len(numbers) > 2:
        return None
    first, *rest = (number for number in numbers if number is not None)
    # `3/10` is from 3 to the end.
    last = rest[0] if rest else field.high if slash else first
    return range(first, last + 1, by) if first <= last else None


def _numbers(span: str, field: Field) -> Iterator[int | None]:
    """Yield the ends of a span as numbers, None for what is none of the field."""
    for end in span.split("-"):
        if end.upper() in field.names:
            yield field.names.index(end.upper()) + field.low
        elif re.fullmatch("[0-9]+", end) and field.low <= int(end) <= field.high:
            yield int(end)
        else:
            yield None
