"""When schedules run: as the scheduler of Kubeflow Pipelines counts it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from rsp.pipelines.cron import FIELDS, check_cron, next_runs
from rsp.shared.errors import UsageError

NOW = datetime(2026, 11, 25, 23, 12, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("0 0 3 * * *", ["11-26 03:00:00", "11-27 03:00:00"]),
        ("@weekly", ["11-29 00:00:00", "12-06 00:00:00"]),
        ("5/20 0 0 * * *", ["11-26 00:00:05", "11-26 00:00:25"]),
        # Either day is enough ...
        ("0 0 0 13 * FRI", ["11-27 00:00:00", "12-04 00:00:00"]),
        ("0 0 0 1-31/2 * MON", ["11-27 00:00:00", "11-29 00:00:00"]),
        ("0 0 0 13 * 0-6", ["11-26 00:00:00", "11-27 00:00:00"]),
        # ... but where one begins with a star, both must fit: Mondays on odd days.
        ("0 0 0 */2 * MON", ["12-07 00:00:00", "12-21 00:00:00"]),
        ("0 0 0 1,* * mon", ["11-30 00:00:00", "12-07 00:00:00"]),
        ("0 0 0 13 * ?/2", ["12-13 00:00:00", "02-13 00:00:00"]),
    ],
)
def test_next_runs(cron, times):
    found = next_runs(check_cron(cron), NOW, 2)
    assert [f"{time:%m-%d %H:%M:%S}" for time in found] == times


def test_a_cron_that_meets_no_date():
    with pytest.raises(UsageError, match="no date meets the cron '0 0 0 31 2"):
        next_runs(check_cron("0 0 0 31 2 *"), NOW)


def _meets(cron: str, time: datetime) -> bool:
    """Tell whether a cron meets a time, field by field: robfig/cron v1's rule in the fewest words."""

    def numbers(part: str, low: int, high: int) -> set[int]:
        found: set[int] = set()
        for item in part.split(","):
            span, _, step = item.partition("/")
            first, _, last = span.partition("-")
            begin = low if first in "*?" else int(first)
            end = high if first in "*?" or (step and not last) else int(last or first)
            found |= set(range(begin, end + 1, int(step or 1)))
        return found

    parts = cron.split()
    values = (time.second, time.minute, time.hour, time.day, time.month, (time.weekday() + 1) % 7)
    fits = [
        value in numbers(part, field.low, field.high)
        for part, field, value in zip(parts, FIELDS, values, strict=True)
    ]
    star = any(item[0] in "*?" for part in (parts[3], parts[5]) for item in part.split(","))
    return all(fits[:3]) and fits[4] and ((fits[3] and fits[5]) if star else (fits[3] or fits[5]))


def test_odd_crons_are_read_as_the_scheduler_does():
    rng = random.Random(7)

    def item(low: int, high: int) -> str:
        first, last = sorted(rng.sample(range(low, high + 1), 2))
        return rng.choice(["*", "?", f"*/{rng.randint(1, 4)}", f"{first}", f"{first}-{last}",
                           f"{first}-{last}/2", f"{first}/3", f"{low}-{high}"])  # fmt: skip

    for _ in range(40):
        days = [",".join(item(*ends) for _ in range(rng.choice([1, 1, 2]))) for ends in ((1, 31), (0, 6))]
        cron = check_cron(
            f"0 30 {rng.choice(['4', '*/12', '3/9'])} {days[0]} {rng.choice(['*', '11/1'])} {days[1]}"
        )
        hour = NOW.replace(minute=30)
        wanted = [time for time in (hour + timedelta(hours=n) for n in range(24 * 60)) if _meets(cron, time)]
        assert next_runs(cron, NOW, 3)[: len(wanted)] == wanted[:3], cron
