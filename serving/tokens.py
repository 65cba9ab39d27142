"""Who may ask for predictions: tokens in a file, one for each team or service that asks.

    # name:token, as of `openssl rand -hex 32`
    mapping:6f1c...e2
    portal:90ab...17

The file is named by RSP_TOKENS_FILE, never by an argument, and is read again when it changes, as a mounted secret
does. Two lines may have the same name, so a token can be replaced without a moment at which neither works.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from rsp.shared.errors import ConfigError

VARIABLE = "RSP_TOKENS_FILE"
# What an answer of status 401 says in WWW-Authenticate. A browser asks its user for the second kind only.
BEARER = 'Bearer realm="rsp"'
BEARER_OR_BASIC = f'{BEARER}, Basic realm="rsp", charset="UTF-8"'

# 16 characters of 64 kinds are 96 bits.
SHORTEST = 16
# Seconds between two looks at the file.
LOOK = 1.0
MAX_BYTES = 1 << 20
# Longer than any token that is meant; nothing is computed of a longer header.
MAX_HEADER = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What RFC 6750 lets a bearer token hold.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_CREDENTIALS = re.compile(r"(bearer|basic) +([!-~]+)", re.I)

Stamp = tuple[int, int, int]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Tokens:
    """The tokens of a file. May be shared by threads.

    Only digests of the tokens are held, and no message has one.

    Args:
        path: The file: one `name:token` a line, blank lines and lines that begin with `#` skipped.
        warn: Is told, in one line, what an operator should mend.

    Raises:
        ConfigError: the file cannot be read, has no token, or has a line that is not one.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = _warn) -> None:
        self._path, self._warn = path, warn
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._names = self._read()
        if not self._names:
            raise ConfigError(f"{VARIABLE}: {path} has no token, so nobody could predict; add a line `name:token`")
        self._looked = time.monotonic()
        self._fault = ""

    @classmethod
    def load(cls, warn: Callable[[str], None] = _warn) -> Self | None:
        """Return the tokens of the file that RSP_TOKENS_FILE names; None, for open to all, where it is not set."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path), warn) if path else None

    def who(self, authorization: str | bytes | None) -> str | None:
        """Return the name of the token in an Authorization header; None where it has none that is known.

        Args:
            authorization: The header's value: `Bearer <token>`, or `Basic` with the token as password and any user
                name, as browsers send it.
        """
        given = _presented(authorization)
        if given is None:
            return None
        digest, found = _digest(given), None
        # Each is compared, whichever it was, and in a time that does not tell how much of it was right.
        for known, name in self._current().items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _current(self) -> dict[bytes, str]:
        """Return the names by digest, as the file has them now (looked at once a second)."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LOOK:
                self._looked = now
                self._reload()
            return self._names

    def _reload(self) -> None:
        """Read the file again if it has changed; where it cannot be read, what was known stays, with a warning."""
        try:
            stamp = self._look()
            if stamp == self._stamp and not self._fault:
                return
            self._names, self._stamp, fault = self._read(), stamp, ""
            if not self._names:
                fault = f"{VARIABLE}: {self._path} has no token any more: nobody can predict"
        except ConfigError as error:
            fault = f"{error}; the tokens that it had before are still taken"
        if fault and fault != self._fault:
            self._warn(fault)
        self._fault = fault

    def _look(self) -> Stamp:
        """Return what changes with the content of the file."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigError(f"{VARIABLE}: cannot read {self._path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[bytes, str]:
        where = f"{VARIABLE}: {self._path}"
        try:
            with self._path.open("rb") as file:
                raw, mode = file.read(MAX_BYTES + 1), os.fstat(file.fileno()).st_mode
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{where} has more than {MAX_BYTES} bytes; is it a file of tokens?")
        if mode & 0o007:
            self._warn(f"{where}: everybody on this machine may read or write it; chmod o= {self._path}")
        names: dict[bytes, str] = {}
        for number, line in enumerate(raw.decode("utf-8-sig", "replace").splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            # The line itself is never part of a message: it may hold a secret.
            name, colon, token = line.strip().partition(":")
            if not colon or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{where}, line {number}: expected `name:token`, the name of letters, digits, dots, dashes "
                    "and underscores"
                )
            if len(token) < SHORTEST or not _TOKEN.fullmatch(token):
                raise ConfigError(
                    f"{where}, line {number}: the token of {name!r} must have at least {SHORTEST} characters, "
                    "and only letters, digits and -._~+/=; make one with `openssl rand -hex 32`"
                )
            if names.setdefault(_digest(token), name) != name:
                raise ConfigError(f"{where}, line {number}: {name!r} has the token of another name")
        return names


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _presented(authorization: str | bytes | None) -> str | None:
    """Return the token in a header; None where there is none."""
    if authorization is None or len(authorization) > MAX_HEADER:
        return None
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
    match = _CREDENTIALS.fullmatch(text.strip(" \t"))
    if match is None:
        return None
    token = match[2]
    if match[1].lower() == "basic":
        try:
            _, colon, token = base64.b64decode(token, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not colon:
            return None
    return token if _TOKEN.fullmatch(token) else None
