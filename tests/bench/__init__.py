"""Measure against rivals, in one run, on the same input, their outputs compared: `make bench`.

    python -m tests.bench                 every row
    python -m tests.bench cover tile      those of some tools
    python -m tests.bench --waive gdal    without a rival that is not installed here
    python -m tests.bench --write docs/benchmarks.md

A module of this package holds the rows of one tool: its function `rows(folder)` yields them, and makes their
seeded inputs in the folder as it goes. A row is a `Row` (ours against a rival, with the bar that the ratio must
keep), a `Growth` (ours against itself on ten times the work), or a `Line` that the module has measured by itself.

Machines are shared and noisy, so what counts is CPU time (user and system, of all processes that take part), the
median over several runs of both sides in turn, and their ratio. A side given as a command is a fresh process, its
start included; one given as a function is measured in this process. The rivals are scripts in `rivals/`, written
as strongly as we know how, or programs that are installed.

The exit code is 1 where a bar is missed, where outputs differ, or where a rival is missing that was not waived.
"""
