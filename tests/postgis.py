"""A throw-away PostgreSQL with PostGIS, for the tests that need one.

Debian: apt-get install --no-install-recommends postgresql postgresql-postgis
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def missing() -> str | None:
    """Return why no server can be started here, or None."""
    if _programs() is None:
        return "no PostgreSQL server with PostGIS (apt-get install postgresql postgresql-postgis)"
    if os.geteuid() == 0 and _owner() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres` to run it as"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no psycopg (pip install 'rsp-tools[rasterize]')"
    return None


def _programs() -> Path | None:
    """Return the folder of the newest server that has PostGIS."""
    for version in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True):
        extension = Path("/usr/share/postgresql") / version.name / "extension" / "postgis.control"
        if (version / "bin" / "initdb").exists() and extension.exists():
            return version / "bin"
    return None


def _owner() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


@contextmanager
def postgis() -> Iterator[str]:
    """Start a server on a socket of its own, with PostGIS in its database, and yield how to connect.

    The test is skipped where none can be started.
    """
    reason = missing()
    if reason:
        pytest.skip(reason)
    import psycopg

    programs = _programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="rsp-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w", "-s"]
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    try:
        make = [*as_user, str(programs / "initdb"), "-D", str(folder / "data")]
        subprocess.run([*make, "-U", "rsp", "-A", "trust", "--no-sync"], **quiet)
        subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], **quiet)
        try:
            dsn = f"host={folder} user=rsp dbname=postgres"
            with psycopg.connect(dsn) as connection:
                connection.execute("CREATE EXTENSION postgis")
            yield dsn
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
