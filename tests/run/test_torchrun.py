"""Leaving a group of processes at the end of a run."""

import pytest
import torch
from torch import distributed

from video_gn.errors import RunError, StoppedError
from video_gn.run.torchrun import leaving_group


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_at_the_end(group):
    with leaving_group():
        distributed.all_reduce(torch.ones(1), group=distributed.new_group(backend="gloo"))
    assert not distributed.is_initialized()


def test_after_a_signal_the_status_is_kept(group):
    with pytest.raises(StoppedError) as found, leaving_group():
        raise StoppedError("SIGTERM: stopped", status=143)
    assert found.value.status == 143
    assert not distributed.is_initialized()


def test_after_an_error_nobody_is_waited_for(group):
    with pytest.raises(RunError), leaving_group():
        raise RunError("a worker died")
    assert distributed.is_initialized()


def test_one_process_is_in_no_group():
    with leaving_group():
        pass
