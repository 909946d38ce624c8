"""Precision, threads and memory of the device a run is on."""

import platform
import subprocess
import sys

import pytest

from cifar_lightning.device import free_memory

FAULTS_OF_A_LARGE_BLOCK = """
import resource
import torch
from cifar_lightning.device import keeping_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
with keeping_freed_memory(torch.device("cpu")):
    faults()
    kept = faults()
print(given_back, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_blocks_are_faulted_in_once():
    command = [sys.executable, "-c", FAULTS_OF_A_LARGE_BLOCK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    given_back, kept, given_back_again = map(int, done.stdout.split())
    assert given_back >= 32, "huge pages of 2 MiB at most"
    assert kept < 10
    assert given_back_again >= 32, "glibc has its defaults again"


GB = 10**9
CACHES = {"memory.stat": "anon 5\ninactive_file 200000000\nactive_file 100000000\n"}
CACHES_OF_V1 = {"memory.stat": "inactive_file 7\ntotal_inactive_file 200000000\ntotal_active_file 100000000\n"}


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {}, 8 * GB),
        ("0::/", {"": {"memory.max": f"{4 * GB}\n", "memory.current": f"{GB}\n"} | CACHES}, 3.3 * GB),
        ("0::/a/b", {"a": {"memory.max": f"{2 * GB}", "memory.current": f"{GB}"} | CACHES, "a/b": {}}, 1.3 * GB),
        ("0::/a", {"a": {"memory.max": "max\n", "memory.current": f"{GB}\n"} | CACHES}, 8 * GB),
        ("0::/a", {"a": {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"} | CACHES}, 0),
        (
            "4:memory:/job",  # which a container does not see under this name
            {"memory": {"memory.limit_in_bytes": f"{GB}", "memory.usage_in_bytes": f"{GB}"} | CACHES_OF_V1},
            0.3 * GB,
        ),
        ("4:memory:/job", {"memory/job": {"memory.limit_in_bytes": f"{2**63 - 4096}"}}, 8 * GB),
    ],
)
def test_free_memory_is_what_the_system_and_the_control_groups_leave(group, files, expected, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:    {8 * GB // 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/\n{group}\n")
    for folder, contents in files.items():
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (tmp_path / "sys/fs/cgroup" / folder / name).write_text(text)
    assert free_memory(tmp_path) == pytest.approx(expected, abs=1024)


def test_free_memory_is_some_of_this_machine():
    assert 0 < free_memory() < 2**50


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say it")
def test_all_memory_counts_where_the_system_does_not_say_what_is_free(tmp_path):
    assert free_memory(tmp_path) >= 2**28
