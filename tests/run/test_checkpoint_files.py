"""The newest whole checkpoint is found, damage is seen, nothing is executed, and another machine is named."""

import collections
import io
import logging
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from pickles import Calls, in_torch
from runs import TINY, run
from small import assert_same

from video_gn.errors import CheckpointError
from video_gn.run.checkpoint_files import environment, environment_differences, newest_checkpoint, read_checkpoint
from video_gn.run.checkpoints import AtomicCheckpointIO
from video_gn.weights.about import KEY


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


def test_a_flipped_bit_is_seen(tmp_path):
    path = write(tmp_path / "checkpoints/step-9", 9)
    assert read_checkpoint(path)["global_step"] == read_checkpoint(path, resume=True)["global_step"] == 9
    flip_a_bit(path)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="damaged: the checksum of"):
            read_checkpoint(path, resume=resume)


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
    assert ("last.ckpt is not there" if damage == "gone" else f"Resuming from {wanted} (step 4)") in caplog.text
    assert "step-00000006.ckpt: damaged, or not a checkpoint" in caplog.text
    assert len(caplog.records) == 1


def test_none_and_none_whole(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    write(tmp_path / "last.ckpt", 9).write_bytes(b"x")
    write(tmp_path / "best.ckpt", 9).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: not a checkpoint.*best\.ckpt: .*empty.*starts from the beginn"
    ):
        newest_checkpoint(tmp_path)


def whole_checkpoint():
    weight = torch.randn(6, 3, 2, 5, 5).to(memory_format=torch.channels_last_3d)
    state = collections.OrderedDict(weight=weight, half=torch.randn(7).bfloat16(), count=torch.tensor(3))
    state["tied"], state["part"] = state["weight"], state["half"][2:4]
    momentum = {0: {"momentum_buffer": torch.randn_like(weight), "step": 2}}
    groups = [{"lr": 0.1, "params": [0, 1], "betas": (0.9, 0.99)}]
    return {
        KEY: {"net": {"width": 4, "norm_options": None}, "mean": [0.1, 0.2, 1 / 3], "classes": ["a", "ç"]},
        "state_dict": state,
        "global_step": 3,
        "optimizer_states": [{"state": momentum, "param_groups": groups}],
        "loops": {"fit_loop": {"total": {"ready": 1}, "empty": {}, "none": None, "nan": float("nan")}},
        "callbacks": {"Averaging": {"eight": torch.randn(4).to(torch.float8_e4m3fn), "best": -1e-300}},
    }


def test_what_is_resumed_is_what_was_saved(tmp_path):
    path, saved = tmp_path / "last.ckpt", whole_checkpoint()
    AtomicCheckpointIO().save_checkpoint(saved, path)
    found = AtomicCheckpointIO().load_checkpoint(path, weights_only=None)
    path.write_bytes(bytes(path.stat().st_size))  # in place: tensors that are mapped would be zeros now
    eight, wanted = (content["callbacks"]["Averaging"].pop("eight") for content in (found, saved))
    assert torch.equal(eight.float(), wanted.float()) and eight.dtype == wanted.dtype
    assert_same(found, {**saved, "state_dict": dict(saved["state_dict"])})
    weight, buffer = found["state_dict"]["weight"], found["optimizer_states"][0]["state"][0]["momentum_buffer"]
    assert weight.stride() == saved["state_dict"]["weight"].stride() == buffer.stride()
    assert weight.data_ptr() == found["state_dict"]["tied"].data_ptr()
    found["state_dict"]["half"][3] = 9
    assert found["state_dict"]["part"][1] == 9


@pytest.mark.parametrize("value", ["x", None, -1, 10**16, 10**400, float("nan"), True, [1]])
def test_counts_of_a_training_are_counts(tmp_path, value):
    path = tmp_path / "last.ckpt"
    for name, change in (
        ("global_step", {"global_step": value}),
        (r"loops\.fit_loop\.total\.ready", {"loops": {"fit_loop": {"total": {"ready": value}}}}),
        (r"lr_schedulers\.0\.last_epoch", {"lr_schedulers": [{"last_epoch": value}]}),
        (r"VideoDataModule\.clips", {"VideoDataModule": {"clips": value, "batches": 2}}),
    ):
        torch.save({**whole_checkpoint(), **change}, path)
        with pytest.raises(CheckpointError, match=rf"last\.ckpt: ({name} must be a whole number|has no key '{name}')"):
            read_checkpoint(path, resume=True)
    torch.save({**whole_checkpoint(), "VideoDataModule": {"clips": 8, "batches": 0}}, path)
    with pytest.raises(CheckpointError, match=r"VideoDataModule\.clips must be 0 after 0 batches, got 8"):
        read_checkpoint(path, resume=True)


DEEP_KEY = b"\x80\x04}" + b")" + b"\x85" * 500_000 + b"K\x01s."  # torch's own unpickler ends the process


def test_hostile_files_are_refused(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "last.ckpt"
    called = io.BytesIO()
    torch.save(
        {KEY: {"net": {}}, "state_dict": {"a": torch.ones(2)}, "global_step": Calls(os.mkdir, str(mark))}, called
    )
    foreign = io.BytesIO()
    torch.save({**whole_checkpoint(), "more": np.array(["text"])}, foreign)
    for data, match in (
        (called.getvalue(), r"holds a call of posix.mkdir: that is a program"),
        (in_torch(DEEP_KEY), "damaged, or not a checkpoint .a key of type tuple"),
        (in_torch(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."), "nested deeper"),
        (foreign.getvalue(), "not a checkpoint of a run: it holds numpy.ndarray"),
        (safetensors.torch.save({"state_dict": torch.ones(2)}), "dict in a file of kind safetensors"),
        (in_torch(b"\x80\x02]."), "but list in a file of kind torch"),
    ):
        path.write_bytes(data)
        for read in (AtomicCheckpointIO().load_checkpoint, read_checkpoint, lambda p: newest_checkpoint(p.parent)):
            with pytest.raises(CheckpointError, match=match):
                read(path)
    assert not mark.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_hostile_file_as_ckpt_path(tiny_videos, tmp_path, command):
    (tmp_path / "deep.ckpt").write_bytes(in_torch(DEEP_KEY))
    torch.save({KEY: Calls(os.mkdir, "mark")}, tmp_path / "call.ckpt")
    for name, words in (("deep.ckpt", "a key of type tuple"), ("call.ckpt", "nothing was executed")):
        argv = [command, *TINY, f"--data.{command.replace('fit', 'train')}={tiny_videos}", f"--ckpt_path={name}"]
        status, printed = run([*argv, f"--run_dir={tmp_path / 'run'}"], tmp_path)
        assert status == 2, printed
        assert words in printed and "Traceback" not in printed
    assert not (tmp_path / "mark").exists()


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
