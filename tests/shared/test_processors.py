"""How many processors a process may use: its affinity and the quotas of its control groups, made up and real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.shared.parallel import cpu_count

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "31 30 0:28 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Make up a system of 64 processors: its /proc/self/cgroup, its mounts, and files of control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))

    def make(cgroup: str, mounts: str, **files: str) -> Path:
        texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 64), ("9900000 100000", 64)],
)
def test_quota_of_a_container(system, quota, expected):
    """In a container of its own namespace the group is the root of what is mounted."""
    assert cpu_count(system("0::/\n", V2, **{"sys/fs/cgroup/cpu.max": f"{quota}\n"})) == expected


def test_the_smallest_quota_from_the_group_up(system):
    root = system(
        "0::/kubepods.slice/pod.slice/main.scope\n",
        V2,
        **{
            "sys/fs/cgroup/kubepods.slice/pod.slice/main.scope/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/kubepods.slice/pod.slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/kubepods.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kubepods.slice/other/cpu.max": "100000 100000\n",
        },
    )
    assert cpu_count(root) == 3


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
@pytest.mark.parametrize("shown", ["/docker/abc", "/"])
def test_version_1_with_the_path_of_the_host_or_its_own(system, path, shown):
    """Docker without namespaces shows the host's path and mounts the group alone, or everything."""
    inside = "/docker/abc" if (path, shown) == ("/docker/abc", "/") else ""
    folder = f"sys/fs/cgroup/cpu,cpuacct{inside}"
    files = {f"{folder}/cpu.cfs_quota_us": "200000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert cpu_count(system(f"4:cpu,cpuacct:{path}\n0::/\n", V1.format(root=shown), **files)) == 2


def test_version_1_without_a_quota(system):
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "-1\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert cpu_count(system("4:cpu,cpuacct:/\n", V1.format(root="/"), **files)) == 64


def test_a_group_outside_of_the_namespace(system):
    assert cpu_count(system("0::/../other\n", V2, **{"sys/fs/cgroup/cpu.max": "400000 100000\n"})) == 4


def test_a_mount_with_a_space_in_its_name(system):
    mounts = V2.replace("/sys/fs/cgroup", r"/sys/fs/c\040group")
    assert cpu_count(system("0::/\n", mounts, **{"sys/fs/c group/cpu.max": "200000 100000\n"})) == 2


@pytest.mark.parametrize("text", ["", "nonsense\n", "1 2 3\n", "100000 0\n"])
def test_a_file_that_cannot_be_read_as_a_quota(system, text):
    assert cpu_count(system("0::/\n", V2, **{"sys/fs/cgroup/cpu.max": text})) == 64


def test_no_proc_and_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert cpu_count(tmp_path) == 2
    mounted = tmp_path / "proc" / "self"
    mounted.mkdir(parents=True)
    (mounted / "cgroup").write_text("0::/\n")
    (mounted / "mountinfo").write_text(V2)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("400000 100000\n")
    assert cpu_count(tmp_path) == 2


def test_a_real_control_group():
    """A group with a quota of one processor, where this machine lets us make one."""
    versions = {
        Path("/sys/fs/cgroup"): {"cpu.max": "100000 100000"},
        Path("/sys/fs/cgroup/cpu"): {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"},
    }
    for top, files in versions.items():
        group = top / f"rsp-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not all((group / name).exists() for name in files):
                continue
            for name, text in files.items():
                (group / name).write_text(text)
            code = (
                f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
                "from rsp.shared.parallel import cpu_count; print(cpu_count())"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.stdout == "1\n", done.stderr
            return
        finally:
            group.rmdir()
    pytest.skip("control groups cannot be made here")
