"""The newest whole checkpoint is found, damage is seen, and another machine is named."""

import logging

import pytest
import torch

from video_gn.errors import CheckpointError
from video_gn.run.checkpoint_files import KEY, environment, environment_differences, newest_checkpoint, read_checkpoint


def write(path, step):
    path.parent.mkdir(exist_ok=True)
    weight = torch.arange(1000.0) + step
    content = {"state_dict": {"w": weight}, "global_step": step, "optimizer_states": [], "loops": {}, KEY: {"net": {}}}
    torch.save(content, path)
    return path


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    place = data.find(
        torch.arange(1000.0)[500:510].add(int(path.stem[-1]) if path.stem[-1].isdigit() else 9).numpy().tobytes()
    )
    assert place > 0
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_seen_where_a_training_goes_on(tmp_path):
    path = write(tmp_path / "checkpoints/step-9", 9)
    flip_a_bit(path)
    assert read_checkpoint(path)["global_step"] == 9
    with pytest.raises(CheckpointError, match="damaged: the checksum of"):
        read_checkpoint(path, resume=True)


def test_the_last_one_is_taken_where_it_is_whole(tmp_path):
    write(tmp_path / "c/step-00000012.ckpt", 12)
    last = write(tmp_path / "c/last.ckpt", 10)
    path, content = newest_checkpoint(tmp_path / "c")
    assert (path, content["global_step"]) == (last, 10)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_the_newest_whole_one_is_taken_instead(tmp_path, caplog, damage):
    directory = tmp_path / "c"
    last = write(directory / "last.ckpt", 9)
    write(directory / "step-00000002.ckpt", 2)
    wanted = write(directory / "step-00000004.ckpt", 4)
    write(directory / "step-00000006.ckpt", 6).write_bytes(b"cut too")
    write(directory / "best.ckpt", 2)
    {
        "cut": lambda: last.write_bytes(last.read_bytes()[:-200]),
        "flipped": lambda: flip_a_bit(last),
        "empty": lambda: last.write_bytes(b""),
        "gone": last.unlink,
    }[damage]()
    with caplog.at_level(logging.WARNING, "video_gn"):
        path, content = newest_checkpoint(directory)
    assert (path, content["global_step"]) == (wanted, 4)
    assert ("last.ckpt is not there" if damage == "gone" else f"Going on from {wanted} (step 4)") in caplog.text
    assert "step-00000006.ckpt" in caplog.text


def test_none_and_none_whole(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    write(tmp_path / "last.ckpt", 9).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: not a checkpoint"):
        newest_checkpoint(tmp_path)


def test_another_machine_is_named(monkeypatch):
    stored = environment()
    assert set(stored) >= {"cpu", "threads", "torch", "lightning", "av"}
    assert all(isinstance(value, str) and value for value in stored.values())
    assert environment_differences(stored) == []
    assert environment_differences({}) == [], "a checkpoint of before"
    torch_there = {**stored, "torch": "1.0", "threads": "99"}
    assert environment_differences(torch_there) == [
        f"threads: 99 there, {stored['threads']} here",
        f"torch: 1.0 there, {stored['torch']} here",
    ]
