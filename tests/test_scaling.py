"""docs/scaling.md and the program behind it say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.scaling import BLOCK, EXAMPLES, Prices, plan, readable, table, tiles_of

TEXT = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text("utf-8")


def test_the_page_has_what_the_program_prints():
    columns = [(title, plan(tiles_of(km2, latitude, 19))) for title, km2, latitude in EXAMPLES]
    assert "\n".join(table(columns)) in TEXT


def test_the_measured_figures_are_those_of_the_program():
    from docs import scaling

    for row in (f"| download | {scaling.DOWNLOAD:g} |", f"| predict | {scaling.PREDICT:g} |"):
        assert row in TEXT
    assert f"{BLOCK:,} tiles" in TEXT
    minutes = BLOCK * (scaling.DOWNLOAD + scaling.PREDICT + scaling.VECTORIZE) / 60_000
    assert f"{minutes:.0f} minutes of one processor" in TEXT


def test_formulas():
    assert tiles_of(1, 45, 19) == pytest.approx(342, abs=0.5)
    one, two = (
        plan(BLOCK),
        plan(2 * BLOCK, Prices(cpu_hour=0.08, gpu_hour=2, put=0.01, get=0.0008, gb_month=0.046)),
    )
    assert (one.blocks, two.blocks) == (1, 2)
    assert two.cost_cpu == pytest.approx(4 * one.cost_cpu) and two.cost_gpu == pytest.approx(4 * one.cost_gpu)
    assert plan(BLOCK, gpu=40).gpu_hours == one.gpu_hours / 2
    assert plan(BLOCK, rate=10).imagery_hours == pytest.approx(20_000 / 36_000)


def test_numbers_people_can_read():
    assert [readable(value) for value in (0.08476, 34_237, 1.51e7, 3.08e10)] == [
        "0.0848",
        "34,200",
        "15.1 M",
        "30.8 G",
    ]
