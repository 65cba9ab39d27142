"""Freed memory is kept for the next tile."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# As the layers of a network do: some arrays at once, and all of them freed.
CODE = """
import resource, sys
import numpy as np
from rsp.shared.memory import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def work():
    for _ in range(5):
        [np.ones(4 << 20, np.uint8) for _ in range(8)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again():
    page = resource.getpagesize()
    assert faults("kept") < 100
    assert faults("given back") >= 5 * (15 << 20) // page
