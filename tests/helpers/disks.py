"""A disk of a few megabytes, to be filled."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(path, megabytes):
    """Mount a file system of its own at a path, for as long as the block runs."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path, *, leave):
    """Write a file that leaves so many bytes free, and return it."""
    status = os.statvfs(path)
    filler = path / "filler"
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - leave))
    return filler
