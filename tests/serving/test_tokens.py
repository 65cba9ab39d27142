"""Tokens: what the file may hold, who gets in, and that a rotated secret is taken up."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from rsp.serving import tokens
from rsp.serving.tokens import Tokens
from rsp.shared.errors import ConfigError

ONE, TWO, THREE = "0123456789abcdef", "b" * 64, "A-._~+/token1234=="
FILE = f"# who may predict\n\nmapping:{ONE}\n portal:{TWO} \nmapping:{THREE}\n"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file as secrets are mounted: another one takes its place."""
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)
    return path


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK", 0.0)
    monkeypatch.setenv("RSP_TOKENS_FILE", str(tmp_path / "tokens"))
    return write(tmp_path / "tokens", FILE)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (f"Bearer {ONE}", "mapping"),
        (f"bearer   {TWO}", "portal"),
        (f"Bearer {THREE}", "mapping"),
        (basic("anybody", TWO), "portal"),
        (basic("", THREE), "mapping"),
        (f"Bearer {ONE}".encode(), "mapping"),
        (None, None),
        ("", None),
        (ONE, None),
        ("Bearer", None),
        ("Bearer ", None),
        (f"Bearer {ONE[:-1]}", None),
        (f"Bearer {ONE}0", None),
        (f"Bearer {ONE} {ONE}", None),
        (f"Bearer {ONE.upper()}", None),
        (f"Digest {ONE}", None),
        (basic(ONE, ""), None),
        (basic(TWO, "x"), None),
        (f"Basic {base64.b64encode(TWO.encode()).decode()}", None),
        ("Basic ???", None),
        ("Basic /////w==", None),
        ("Bearer \xe9\xff", None),
        (b"Bearer \xff\x00", None),
        ("Bearer " + "9" * 100_000, None),
        (basic("user", "naïve"), None),
    ],
)
def test_who_gets_in(path, header, name):
    assert Tokens.load().who(header) == name


def test_open_to_all_unless_a_file_is_named(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("RSP_TOKENS_FILE", raising=False)
        if value is not None:
            monkeypatch.setenv("RSP_TOKENS_FILE", value)
        assert Tokens.load() is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no token, so nobody could predict"),
        ("# nothing\n", "has no token"),
        ("0123456789abcdef\n", "line 1: expected `name:token`"),
        (f"a:{ONE}\nb c:{TWO}\n", "line 2: expected `name:token`"),
        (f":{ONE}\n", "line 1: expected `name:token`"),
        (f"a:{ONE[:-1]}\n", "line 1: the token of 'a' must have at least 16 characters"),
        ("a:0123456789 abcdef\n", "the token of 'a'"),
        ("a:0123456789abcdé0\n", "the token of 'a'"),
        ("a:0123:456789abcdef\n", "the token of 'a'"),
        (f"a:{ONE}\nb:{ONE}\n", "line 2: 'b' has the token of another name"),
        ("a:" + "b" * (2 << 20), "is it a file of tokens"),
    ],
)
def test_files_that_are_refused_name_the_line_and_no_secret(path, text, reason):
    write(path, text)
    with pytest.raises(ConfigError, match=reason) as caught:
        Tokens.load()
    assert str(path) in str(caught.value) and "0123" not in str(caught.value)


def test_a_file_that_is_not_there(path):
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Tokens.load()
    path.mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        Tokens.load()


def test_a_rotated_secret_is_taken_up(path):
    said = []
    known = Tokens.load(said.append)
    write(path, f"mapping:{TWO}\n")
    assert known.who(f"Bearer {ONE}") is None and known.who(f"Bearer {TWO}") == "mapping"
    # Of a file that is being written, or has gone, nothing is taken; what was known stays. It is said once.
    write(path, "mapping:short\n")
    assert known.who(f"Bearer {TWO}") == known.who(f"Bearer {TWO}") == "mapping"
    path.unlink()
    assert known.who(f"Bearer {TWO}") == "mapping"
    assert [part in text for part, text in zip(("at least 16", "No such file"), said, strict=True)] == [True, True]
    assert all("still taken" in text and TWO not in text for text in said)
    write(path, FILE)
    assert known.who(f"Bearer {ONE}") == "mapping"
    # Who empties the file takes everybody's right away.
    write(path, "# closed\n")
    assert known.who(f"Bearer {ONE}") is None and "nobody can predict" in said[-1]


def test_the_file_is_looked_at_once_a_second(path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK", 3600.0)
    known = Tokens.load()
    write(path, f"mapping:{TWO}\n")
    assert known.who(f"Bearer {ONE}") == "mapping"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o440, False), (0o644, True), (0o602, True)])
def test_a_file_that_everybody_may_read(path, mode, warned, capsys):
    path.chmod(mode)
    known = Tokens.load()
    assert known.who(f"Bearer {ONE}") == known.who(f"Bearer {ONE}") == "mapping"
    assert capsys.readouterr().err.count("may read or write") == warned  # once, not at each look
