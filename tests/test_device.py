"""Precision, threads and memory of the device a run is on."""

import platform
import subprocess
import sys

import pytest

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
