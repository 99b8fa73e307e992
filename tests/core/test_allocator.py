"""Freed memory stays with the process: counted in page faults, since time depends on the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from medkd.core.allocator import reuse_freed_memory

PROGRAM = """
import resource, sys, torch
from medkd.core.allocator import reuse_freed_memory
if sys.argv[1] == "keep":
    assert reuse_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(10):
        torch.ones(10 * 2**20)  # 40 MiB: glibc itself gives back all above 32
work()
before = faults()
work()
print(faults() - before)
"""


def _faults(what: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, where nothing is set")
def test_the_second_round_takes_no_new_pages() -> None:
    assert _faults("keep") < 0.1 * _faults("return")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not reuse_freed_memory()
