"""The kept mutants still fit the code, and what runs them tells those that are noticed from those that are not."""

from __future__ import annotations

import subprocess

import pytest

from tests.mutants.__main__ import main
from tests.mutants.flags import TOOLS, flag_mutants, table, variants
from tests.mutants.table import Mutant, faults, load


def test_every_mutant_changes_one_place_and_names_tests_that_there_are():
    mutants = load()
    assert list(faults(mutants)) == []
    assert len(mutants) >= 60


@pytest.mark.parametrize("tool", TOOLS)
def test_every_flag_of_a_data_tool_has_a_test(tool):
    """Who adds a parameter, or a choice, names the test that fails where it is not heard, in flags.toml."""
    assert set(table()[tool]) == {what for what, _ in variants(tool)}


def test_every_flag_has_a_test_that_there_is():
    mutants = flag_mutants()
    assert list(faults(mutants)) == []
    assert len(mutants) == sum(map(len, table().values())) and set(table()) == set(TOOLS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"find": "x"}, "toy.py has 0 places"),
        ({"find": "return"}, "toy.py has 2 places"),
        ({"file": "none.py"}, "there is no file none.py"),
        ({"replace": "1 +"}, "no Python"),
        ({"replace": "1 + 1"}, "nothing is changed"),
        ({"tests": ()}, "no test is named"),
        ({"tests": ("test_none.py",)}, "there is no file test_none.py"),
        ({"tests": ("test_toy.py::test_none",)}, "test_toy.py has no test test_none"),
    ],
)
def test_faults_of_a_table(toy, changes, message):
    fields = {
        "name": "a",
        "file": "toy.py",
        "find": "1 + 1",
        "replace": "1 - 1",
        "tests": ("test_toy.py::test_two",),
    }
    found = list(faults([Mutant(**{**fields, **changes})], toy))
    assert [message in fault for fault in found] == ([True] if message else [])


@pytest.fixture
def toy(tmp_path):
    """A project of its own, under git."""
    (tmp_path / "toy.py").write_text("def two():\n    return 1 + 1\n\n\ndef unused():\n    return 'a'\n")
    (tmp_path / "test_toy.py").write_text(
        "import sys\n\nimport pytest\nimport toy\n\n\ndef test_two():\n    assert toy.two() == 2\n\n\n"
        "@pytest.mark.skip\ndef test_skipped():\n    assert toy.unused() == 'a'\n"
    )
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_survivors_are_reported(toy, capsys, monkeypatch):
    monkeypatch.setenv(
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"
    )  # pytest with none of them starts in a fraction of the time
    table = toy / "table"
    table.mkdir()
    (table / "findings.toml").write_text(
        "\n".join(
            f"[[mutant]]\nname = '{name}'\nfile = 'toy.py'\nfind = '''{find}'''\nreplace = '''{replace}'''\n"
            f"tests = ['test_toy.py::{test}']"
            for name, find, replace, test in (
                ("wrong sum", "1 + 1", "1 - 1", "test_two"),
                ("never asked", "'a'", "'b'", "test_two"),
                ("never run", "'a'", "'c'", "test_skipped"),
                ("no Python module", "def two", "import nowhere\ndef two", "test_two"),
            )
        )
    )
    before = (toy / "toy.py").read_bytes()
    assert main(["--workers", "1"], root=toy, folder=table) == 1
    said = capsys.readouterr().out
    noticed = [line.split(" s ")[1].strip() for line in said.splitlines() if line.startswith("noticed")]
    survived = [line.split(" s ")[1].strip() for line in said.splitlines() if line.startswith("SURVIVED")]
    assert noticed == ["wrong sum"] and survived == ["never asked", "never run", "no Python module"]
    assert "skipped here: test_toy.py::test_skipped" in said and "4 mutants" in said and "3 not noticed" in said
    assert (toy / "toy.py").read_bytes() == before
    assert main(["sum", "--workers", "1"], root=toy, folder=table) == 0
    (toy / "toy.py").write_text("def two():\n    return 3\n")
    assert main([], root=toy, folder=table) == 1  # nothing to replace any more
    assert "0 places" in capsys.readouterr().err
