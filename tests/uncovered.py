"""List the functions that no test enters, from the report of `coverage json`.

python -m tests.uncovered coverage.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def functions(report: dict) -> list[str]:
    """Return `file:line function` of each function with statements of which none was run."""
    found = []
    for file, measured in report["files"].items():
        for name, function in measured["functions"].items():
            summary = function["summary"]
            if name and summary["num_statements"] and not summary["covered_lines"]:
                found.append(f"{file}:{function['start_line']} {name}")
    return found


def main(path: Path) -> None:
    """Print them, and the figures of the whole."""
    report = json.loads(path.read_text())
    total, found = report["totals"], functions(report)
    print(f"{len(found)} functions that no test enters{':' if found else ''}")
    print(*(f"  {line}" for line in found), sep="\n")
    lines = 100 * total["covered_lines"] / total["num_statements"]
    branches = 100 * total["covered_branches"] / total["num_branches"]
    print(f"lines {lines:.1f} %, branches {branches:.1f} %, both {total['percent_covered']:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
