"""Leaving a group of processes at the end of a run."""

import pytest
import torch
from torch import distributed

from video_gn.errors import RunError, StoppedError
from video_gn.run.torchrun import leaving_group, lost_rank


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


def test_a_rank_that_is_left_alone_says_so_in_a_line():
    """Texts of gloo (torch 2.15) and nccl."""
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection {} by peer [127.0.0.1]:45445."
    nccl = "NCCL error ... ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"
    for text in (gloo.format("closed"), gloo.format("reset"), nccl):
        assert "another rank has ended" in str(lost_rank(RuntimeError(text)))
    assert lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
