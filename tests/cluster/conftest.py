"""Clusters of both ways to signal a job, brought up when first asked for."""

from pathlib import Path

import pytest
from clusters import ENDED, read, running, words

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture(scope="session")
def cluster():
    """Its signals reach every process of a job."""
    with running("linuxproc") as found:
        yield found


@pytest.fixture(scope="session")
def cgroup_cluster():
    """Its signals reach the processes that srun started, as on most clusters; it needs cgroups of version 1."""
    if not FREEZER.is_dir():
        pytest.skip("needs_slurm: proctrack/cgroup needs the freezer of cgroups version 1")
    with running("cgroup") as found:
        yield found


@pytest.fixture(scope="session")
def usual_cluster(request):
    """As most clusters are, where this machine can."""
    return request.getfixturevalue("cgroup_cluster" if FREEZER.is_dir() else "cluster")


@pytest.fixture(scope="session")
def whole(cluster, tiny_videos, tmp_path_factory):
    """A training of two nodes that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole")
    found = cluster.wait(cluster.submit(path, *words(tiny_videos, path, pause=0)), *ENDED)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "0"), read(path / "slurm.log")
    return path
