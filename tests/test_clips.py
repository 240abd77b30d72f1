import pickle

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from video_gn.clips import ClipBatch, Failure, VideoNote
from video_gn.errors import DecodeError, FrameCountError


def batch(**changes):
    parts = {
        "frames_NKTCHW": torch.zeros(2, 3, 4, 3, 5, 6, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "video_ids": torch.tensor([4, 5]),
    }
    return ClipBatch(**{**parts, **changes})


def test_a_batch_knows_its_size():
    assert len(batch()) == 2
    assert batch().num_clips == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames_NKTCHW", torch.zeros(2, 3, 4, 3, 5, 6)),
        ("frames_NKTCHW", torch.zeros(2, 4, 3, 5, 6, dtype=torch.uint8)),
        ("frames_NKTCHW", torch.zeros(2, 3, 4, 1, 5, 6, dtype=torch.uint8)),
        ("labels", torch.tensor([0, 1, 2])),
        ("labels", torch.tensor([0, 1], dtype=torch.int32)),
        ("video_ids", torch.tensor([[4, 5]])),
        ("notes", (VideoNote("a", 1, 1.0, ()),)),
    ],
)
def test_a_batch_checks_its_shapes(name, value):
    with pytest.raises(ValueError, match=name):
        batch(**{name: value})


def test_moving_keeps_everything_and_the_memory_order():
    frames = torch.zeros(2, 3, 4, 5, 6, 3, dtype=torch.uint8).permute(0, 1, 2, 5, 3, 4)
    moved = batch(frames_NKTCHW=frames, failures=(Failure(1, "a", "b"),)).to("cpu")
    assert moved.frames_NKTCHW.stride() == frames.stride()
    assert moved.failures == (Failure(1, "a", "b"),)


def test_a_gpu_gets_it_without_the_host_waiting():
    """As Lightning moves it: page-locked memory is of no use to a copy that waits."""
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                waits.append(not kwargs.get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Watch():
        moved = move_data_to_device(batch(), torch.device("cuda:0"))
        assert {t.device.type for t in (moved.frames_NKTCHW, moved.labels, moved.video_ids)} == {"cuda"}
        move_data_to_device(moved, torch.device("cpu"))  # what is read back must be there
    assert waits == [False] * 3 + [True] * 3


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "no video stream")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "no video stream", "a.mp4: no video stream")
    error = pickle.loads(pickle.dumps(FrameCountError("a.mp4", 3, 5)))
    assert (error.num_frames, error.promised) == (3, 5)
    assert str(error) == "a.mp4: only 3 of 5 frames decode"
