"""`rsp`: its grammar, its exit codes, and how little it imports."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from rsp.shared import cli
from rsp.shared.arguments import add_config, add_out, add_web_ui, add_workers, bounded, int_list, require
from rsp.shared.cli import WORKFLOW, arguments, main, make_parser, parse, tools
from rsp.shared.errors import RspError, TileSetError, UsageError
from rsp.shared.report import Result
from rsp.shared.tiles import Tile

ALL = list(tools())


@dataclass(kw_only=True)
class FakeResult(Result):
    count: int
    share: float = float("nan")
    parts: list[Path]


@pytest.fixture
def fake(monkeypatch):
    """A tool `fake` that does what its argument says; returns its module."""
    module = ModuleType("fake_tool", "Pretend to be a tool.\n\nrsp fake ok")

    def fake(
        what: str, out: Path, *, images: list[Path] | None = None, number: int = 0, kind: str = "a"
    ) -> FakeResult:
        if what == "usage":
            raise UsageError("that cannot be meant")
        if what == "error":
            raise TileSetError("no tiles there")
        if what == "crash":
            raise ZeroDivisionError("a mistake of\nours")
        if what == "memory":
            raise MemoryError
        if what == "recursion":
            return fake(what, out)
        if what == "interrupt":
            raise KeyboardInterrupt
        failed = {Tile(3, 2, 5): "not an image", Tile(1, 2, 5): "empty"} if what == "partly" else {}
        return FakeResult(failed=failed, count=number, parts=[out])

    def add_arguments(parser):
        parser.add_argument("what")
        add_out(parser, "where to")
        parser.add_argument("--images", type=Path, nargs="+")
        parser.add_argument("--number", type=int, default=0)
        parser.add_argument("--type", dest="kind", choices=("a", "b"), default="a")

    module.fake, module.add_arguments = fake, add_arguments
    module.resolve = lambda args: require(args, "out")
    monkeypatch.setitem(sys.modules, "fake_tool", module)
    known = tools()
    monkeypatch.setattr(cli, "tools", lambda: {**known, "fake": "fake_tool"})
    return module


def given(module, *argv):
    return arguments("fake", module, parse(make_parser("fake", module), [str(arg) for arg in argv]))


def test_tools_come_in_the_order_of_the_workflow(rsp):
    assert tuple(ALL) == WORKFLOW
    ran = rsp("-h")
    lines = [line.split()[0] for line in ran.stdout.splitlines() if line.startswith("  ")]
    assert ran.code == 0 and tuple(lines) == (*WORKFLOW, "help", "completion")
    assert rsp("--help").stdout == rsp("help").stdout == ran.stdout
    ran = rsp()
    assert ran.code == 0 and ", ".join(WORKFLOW) in ran.stdout


def test_tools_of_other_packages_follow(monkeypatch):
    from importlib.metadata import EntryPoint

    points = [EntryPoint(name, f"{name}.tool", "rsp.tools") for name in ("zebra", "predict", "ape", "cover")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    assert list(tools()) == ["cover", "predict", "ape", "zebra"]


def test_a_tool_that_cannot_be_imported_hides_no_other(rsp, monkeypatch):
    known = tools()
    monkeypatch.setattr(cli, "tools", lambda: {"gone": "no.such.module", **known})
    ran = rsp("-h")
    assert ran.code == 0 and "cannot be imported" in ran.stdout and "Make a tile cover" in ran.stdout


def test_unknown_tool(rsp):
    for argv in (["covr", "x"], ["help", "covr"]):
        ran = rsp(*argv)
        assert ran.code == 2 and ran.stderr.startswith("rsp: error: unknown tool covr (did you mean cover?)\n")
    assert "did you mean --version?" in rsp("--versio").stderr
    ran = rsp("zzz")
    assert ran.code == 2 and "did you mean" not in ran.stderr and ", ".join(WORKFLOW) in ran.stderr


@pytest.mark.parametrize("argv", [["cover"], ["pipeline"], ["pipeline", "run"], ["completion"]])
def test_help_as_a_word(rsp, argv):
    ran = rsp("help", *argv)
    assert ran.code == 0 and ran.stdout.startswith(f"usage: rsp {' '.join(argv)} [-h]")
    assert ran.stdout == rsp(*argv, "--help").stdout


MISTAKES = [
    (["train", "--epoch", "3", "models"], "unknown option --epoch (did you mean --epochs?)"),
    (["train", "--epoch=3", "models"], "unknown option --epoch (did you mean --epochs?)"),
    # Said before argparse's own complaint that --zoom is missing.
    (["tile", "--zom", "18", "a.tif", "tiles"], "unknown option --zom (did you mean --zoom?)"),
    (
        ["cover", "--type", "BBOX", "1,2,3,4", "x"],
        "invalid choice 'BBOX' (did you mean bbox?); choose from geojson",
    ),
    (
        ["compare", "--mode", "qqq", "x"],
        "argument --mode: invalid choice 'qqq'; choose from side, stack, outline, list",
    ),
    (["export", "--nonesuch-at-all", "x"], "unknown option --nonesuch-at-all\n"),
    (["export", "-z", "x"], "unknown option -z\n"),
    (["pipeline", "rn", "x"], "invalid choice 'rn' (did you mean run?)"),
    (["pipeline", "run", "hello_world", "--verbos"], "unknown option --verbos (did you mean --verbose?)"),
    (["pipeline", "run", "hello_world", "--pa", "x"], "unknown option --pa"),
    (["export", "a", "b", "--checkpoint", "c"], "unexpected argument: b"),
]


@pytest.mark.parametrize(("argv", "said"), MISTAKES)
def test_a_mistake_is_named_first_and_help_after_it(rsp, argv, said):
    ran = rsp(*argv)
    first, second = ran.stderr.splitlines()
    assert ran.code == 2 and ran.stdout == "" and "Traceback" not in ran.stderr
    assert first.startswith(f"rsp {argv[0]}") and said.strip() in first
    assert said[-1] != "\n" or first.endswith(said.strip())
    assert second.startswith(f"See `rsp help {argv[0]}") and second.endswith("`.")


def test_values_that_look_like_flags(fake):
    """What argparse takes for a value stays one."""
    assert given(fake, "--of a kind", "x")["what"] == "--of a kind"


def test_version(rsp):
    from importlib.metadata import version

    assert rsp("--version").stdout == f"rsp {version('rsp-tools')}\n"


@pytest.mark.parametrize("name", ALL)
def test_help_of_every_tool(rsp, name):
    ran = rsp(name, "--help")
    assert ran.code == 0 and ran.stdout.startswith(f"usage: rsp {name}")


def test_help_imports_neither_torch_nor_kfp():
    code = (
        "import sys\nfrom rsp.shared.cli import main, tools\n"
        "heavy = {'torch', 'kfp', 'transformers', 'numpy', 'rasterio', 'shapely', 'PIL', 'osmium', 'requests'}\n"
        "for name in tools():\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "    found = sorted(heavy & set(sys.modules))\n"
        "    if found: sys.exit(f'{name}: {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ORDERS = [
    ("ok", "here", "--number", "3", "--images", "a", "b"),
    ("--number", "3", "ok", "--images", "a", "b", "--type", "a", "here"),
    ("ok", "--images", "a", "b", "--number", "3", "here"),
    ("--images", "a", "b", "--number=3", "ok", "here"),
    ("--images", "a", "b", "--number", "3", "ok", "--out", "here"),
    ("--out", "here", "ok", "--number", "3", "--images", "a", "b"),
]


@pytest.mark.parametrize("argv", ORDERS)
def test_positionals_and_flags_in_any_order(fake, argv):
    """`--images a b` takes all up to the next flag; positionals may stand before, between and after."""
    assert given(fake, *argv) == {
        "what": "ok", "out": Path("here"), "images": [Path("a"), Path("b")], "number": 3, "kind": "a",
    }  # fmt: skip


def test_a_double_dash_ends_the_flags(fake):
    found = given(fake, "--images", "a", "b", "--", "ok", "here")
    assert (found["what"], found["out"], found["images"]) == ("ok", Path("here"), [Path("a"), Path("b")])


def test_the_seeds_compare_line():
    """The line of the seed's README, whose positional follows a greedy flag and another one."""
    from rsp.components.compare import tool

    line = "--mode stack --labels labels --images images labels masks --masks masks compare"
    found = arguments("compare", tool, parse(make_parser("compare", tool), line.split()))
    assert [str(path) for path in found["images"]] == ["images", "labels", "masks"]
    assert (found["mode"], str(found["labels"]), str(found["masks"])) == ("stack", "labels", "masks")
    assert str(found["out"]) == "compare"


def test_an_output_that_is_missing_or_given_twice(fake, rsp):
    ran = rsp("fake", "ok")
    assert ran.code == 2 and "`out` is missing" in ran.stderr
    ran = rsp("fake", "ok", "here", "--out", "there")
    assert ran.code == 2 and "given twice" in ran.stderr


def test_negative_numbers_and_lists_are_no_flags(fake):
    assert given(fake, "ok", "x", "--number", "-3")["number"] == -3
    assert given(fake, "-4.8,45.7,-4.7,45.8", "x")["what"].strip() == "-4.8,45.7,-4.7,45.8"


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("ok", 0, "rsp fake: count: 7"),
        ("error", 1, "rsp fake: error: no tiles there"),
        ("usage", 2, "rsp fake: error: that cannot be meant"),
        ("partly", 3, "rsp fake: failed: 2, count: 7"),
        ("interrupt", 130, "rsp fake: interrupted"),
    ],
)
def test_exit_codes(fake, rsp, what, code, said):
    ran = rsp("fake", what, "here", "--number", 7)
    assert ran.code == code and "Traceback" not in ran.stderr
    assert sorted(said.removeprefix("rsp fake: ").split(", ")) == sorted(
        ran.stderr.strip().removeprefix("rsp fake: ").split(", ")
    )


@pytest.mark.parametrize("argv", [["ok", "x", "--none"], ["ok", "x", "--type", "c"], ["ok", "x", "y"], []])
def test_wrong_arguments_exit_2(fake, rsp, argv):
    ran = rsp("fake", *argv)
    assert ran.code == 2 and ran.stderr.startswith("rsp fake: error: ")
    assert "usage:" not in ran.stderr and ran.stderr.endswith("See `rsp help fake`.\n")


def test_debug_shows_the_traceback(fake):
    with pytest.raises(TileSetError):
        main(["fake", "error", "here", "--debug"])


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("crash", ZeroDivisionError, "unexpected ZeroDivisionError: a mistake of ours; run again with --debug"),
        ("memory", MemoryError, "out of memory"),
        ("recursion", RecursionError, "unexpected RecursionError: "),
    ],
)
def test_an_unforeseen_error_is_one_line(fake, rsp, what, kind, said):
    ran = rsp("fake", what, "here")
    assert ran.code == 1 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"rsp fake: error: {said}")
    with pytest.raises(kind):
        main(["fake", what, "here", "--debug"])


def test_a_tool_that_cannot_be_imported_is_one_line(rsp, monkeypatch):
    monkeypatch.setattr(cli, "tools", lambda: {"lost": "no_such_module"})
    ran = rsp("lost")
    assert ran.code == 1 and "ModuleNotFoundError" in ran.stderr and ran.stderr.count("\n") == 1


def test_report(fake, rsp, tmp_path):
    assert rsp("fake", "partly", "here", "--number", 7, "--report", tmp_path / "deep" / "r.json").code == 3
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == {
        "tool": "fake", "count": 7, "share": None, "parts": ["here"],
        "failed": [{"tile": [1, 2, 5], "reason": "empty"}, {"tile": [3, 2, 5], "reason": "not an image"}],
    }  # fmt: skip


def test_a_report_that_cannot_be_written(fake, rsp, tmp_path):
    (tmp_path / "file").touch()
    ran = rsp("fake", "ok", "here", "--report", tmp_path / "file" / "r.json")
    assert ran.code == 1 and str(tmp_path / "file") in ran.stderr and "Traceback" not in ran.stderr


def test_a_module_with_a_main_does_all_by_itself(rsp, monkeypatch):
    module = ModuleType("own_tool", "Own.")

    def own(argv):
        if argv == ["error"]:
            raise TileSetError("no")
        return len(argv)

    module.main = own
    monkeypatch.setitem(sys.modules, "own_tool", module)
    monkeypatch.setattr(cli, "tools", lambda: {"own": "own_tool"})
    assert rsp("own", "a", "b").code == 2
    ran = rsp("own", "error")
    assert ran.code == 1 and ran.stderr == "rsp own: error: no\n"


@pytest.mark.parametrize("argv", [["-h"], ["cover", "-h"], []])
def test_a_reader_that_goes_away(argv):
    """`rsp -h | head -0`: no traceback, no complaint at the exit."""
    # Unbuffered, argparse meets the closed pipe itself, keeps quiet, and exits with 0.
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "rsp.shared.cli", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1 and errors == ""


def test_errors_leave_by_the_process(rsp_process, tmp_path):
    ran = rsp_process("cover", "--type", "dir", tmp_path / "none", tmp_path / "cover")
    assert ran.code == 1 and ran.stderr.startswith("rsp cover: error: no tile set at")
    assert rsp_process("cover").code == 2


def test_every_error_has_an_exit_code():
    def below(kind):
        return {kind, *(each for sub in kind.__subclasses__() for each in below(sub))}

    assert {kind.exit_code for kind in below(RspError)} == {1, 2, 3}


def test_int_list():
    assert int_list("70,30") == int_list("70/30") == [70, 30]
    with pytest.raises(argparse.ArgumentTypeError, match="whole numbers"):
        int_list("70;30")


def test_bounded():
    share = bounded(float, 0, 100)
    assert share("12.5") == 12.5
    for text in ("-1", "101", "many", "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            share(text)


def test_shared_flags():
    parser = argparse.ArgumentParser()
    for add in (add_config, add_workers, add_web_ui):
        add(parser)
    args = vars(parser.parse_args([]))
    assert args == {
        "config": None, "workers": None, "web_ui_base_url": "./", "web_ui_template": None, "web_ui": True,
    }  # fmt: skip
    assert parser.parse_args(["--no_web_ui"]).web_ui is False


def test_the_installed_tools_are_those_of_this_checkout():
    wanted = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert wanted["rsp.tools"] == cli.OURS
    assert wanted["rsp.tools"].items() <= tools().items(), (
        "entry points have changed; install again: .venv/bin/pip install --no-deps --no-build-isolation -e ."
    )
