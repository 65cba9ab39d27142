"""The kept mutants: what is replaced by what in which file, and the tests that have to fail then."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Mutant:
    """One wrong version of the project.

    Attributes:
        name: What is wrong in it; no two have the same.
        file: The file that is changed, relative to the root of the checkout.
        find: What is replaced: a text that stands in one place of the file, so that lines may move.
        replace: What stands there instead.
        tests: What pytest is told to run: files, or `file::test`. One of them has to fail.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Return the text of the file as the mutant has it.

        Raises:
            ValueError: the file is missing, or the text to replace is not in it, or in several places.
        """
        path = root / self.file
        if not path.is_file():
            raise ValueError(f"{self.name}: there is no file {self.file}")
        text = path.read_text("utf-8")
        if (count := text.count(self.find)) != 1:
            raise ValueError(f"{self.name}: {self.file} has {count} places that read {self.find!r}; expected one")
        return text.replace(self.find, self.replace)


def load(folder: Path = HERE) -> list[Mutant]:
    """Return the mutants of all tables (`*.toml`) of a folder, those of earlier findings first."""
    tables = sorted(folder.glob("*.toml"), key=lambda path: (path.stem != "findings", path.stem))
    return [
        Mutant(**{**entry, "tests": tuple(entry["tests"])})
        for path in tables
        for entry in tomllib.loads(path.read_text("utf-8")).get("mutant", [])
    ]


def faults(mutants: list[Mutant], root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with the tables themselves: nothing to replace, no such test, no Python."""
    names: set[str] = set()
    for mutant in mutants:
        if mutant.name in names:
            yield f"{mutant.name}: another mutant has this name"
        names.add(mutant.name)
        try:
            text = mutant.apply(root)
        except ValueError as error:
            yield str(error)
            continue
        if mutant.find == mutant.replace:
            yield f"{mutant.name}: nothing is changed"
        if mutant.file.endswith(".py"):
            try:
                ast.parse(text)
            except SyntaxError as error:
                yield f"{mutant.name}: {mutant.file} is no Python then: {error}"
        if not mutant.tests:
            yield f"{mutant.name}: no test is named"
        for test in mutant.tests:
            file, _, function = test.partition("::")
            path = root / file
            if not path.is_file():
                yield f"{mutant.name}: there is no file {file}"
            elif function and f"def {function.partition('[')[0]}(" not in path.read_text("utf-8"):
                yield f"{mutant.name}: {file} has no test {function}"
