"""Small tables and records as text: CSV and JSON, whole in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: float) -> str:
    """Return a number for a table of text; nothing where it is undefined."""
    return "" if value != value else f"{value:.6f}"


def csv_text(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a small table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


def json_text(found: Mapping[str, Any]) -> str:
    """Return JSON, of what has types of JSON only."""
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
