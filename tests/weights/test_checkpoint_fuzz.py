"""Damaged weight files of every writer: refused in a sentence, or whole; never anything else.

VIDEO_GN_DAMAGED_CHECKPOINTS is how many are read. What a damage is depends on its number alone.
"""

import os
import random

import numpy as np
import pytest
import torch
from small import ABOUT, assert_same
from weight_files import caffe2_pkl, flat_pth, flat_safetensors, mmaction_training_pth, slowfast_pyth
from zoo_nets import randomized, small

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.run.checkpoint_files import newest_checkpoint
from video_gn.run.checkpoints import AtomicCheckpointIO
from video_gn.training.module import VideoClassifier
from video_gn.weights.about import KEY
from video_gn.weights.build import build_net
from video_gn.weights.convert import convert
from video_gn.weights.files import read_file
from video_gn.weights.formats import recognize
from video_gn.weights.inspect import inspect
from video_gn.weights.keymaps import KEYMAPS

NUM_DAMAGED = int(os.environ.get("VIDEO_GN_DAMAGED_CHECKPOINTS", "64"))
# Without checksums a value that has changed is a value.
HAS_CHECKSUMS = ("last.ckpt", "own.safetensors", "slowfast.pyth", "mmaction.pth")


def training_checkpoint(path):
    """As fit writes it: a network of width 8, with momentum and the state of the loops."""
    net = randomized(i3d(50, norm="group", num_groups=2, width=8, num_classes=3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    words = {**VideoClassifier(net).describe(), **ABOUT}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    counts = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    content = {
        "epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.6.0", "state_dict": state,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": counts, "current": counts}}},
        "callbacks": {"RunCheckpoint": {"best": 0.5, "best_step": 7, "validated": [0, 12]}},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last_epoch": 7}], KEY: words,
    }  # fmt: skip
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Name -> bytes of a whole file of each writer."""
    place = tmp_path_factory.mktemp("whole")
    named = {
        zoo: {KEYMAPS[zoo].to_theirs(name): tensor.clone() for name, tensor in randomized(small()).state_dict().items()}
        for zoo in ("slowfast", "mmaction", "caffe2", "torchvision")
    }
    blobs = {name: tensor.numpy() for name, tensor in named["caffe2"].items() if name is not None}
    paths = [
        training_checkpoint(place / "last.ckpt"),
        slowfast_pyth(place / "slowfast.pyth", named["slowfast"]),
        mmaction_training_pth(place / "mmaction.pth", named["mmaction"]),
        caffe2_pkl(place / "caffe2.pkl", {name: np.ascontiguousarray(array) for name, array in blobs.items()}),
        flat_pth(place / "flat.pth", named["torchvision"]),
        flat_safetensors(place / "flat.safetensors", named["torchvision"], metadata={"format": "pt"}),
        place / "own.safetensors",
        place / "old.pth",
    ]
    convert(place / "last.ckpt", place / "own.safetensors")
    torch.save(named["torchvision"], place / "old.pth", _use_new_zipfile_serialization=False)
    for path in paths:
        recognize(read_file(path))
    return {path.name: path.read_bytes() for path in paths}


def damaged(data, rng):
    """(what was done, the bytes), for a whole file's bytes."""
    data, size = bytearray(data), len(data)
    # The names and numbers that a reader follows lie at both ends, the weights between.
    where = rng.choice(
        [rng.randrange(size), rng.randrange(min(size, 60_000)), size - 1 - rng.randrange(min(size, 30_000))]
    )
    length = min(size - where, rng.choice([1, 2, 8, 64, 512, 4096, 65_536]))
    kind = rng.choice(["cut", "flip", "flip", "flip", "zeros", "noise", "swap", "double", "drop", "insert"])
    other = rng.randrange(size - length + 1)
    if kind == "cut":
        del data[where:]
    elif kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[where] ^= 1 << rng.randrange(8)
            where = rng.randrange(size)
    elif kind == "zeros":
        data[where : where + length] = bytes(length)
    elif kind == "noise":
        data[where : where + length] = rng.randbytes(length)
    elif kind == "swap":
        data[where : where + length], data[other : other + length] = (
            data[other : other + length],
            data[where : where + length],
        )
    elif kind == "double":
        data += data[-length:]
    elif kind == "drop":
        del data[where : where + length]
    else:
        data[where:where] = data[other : other + length]
    return f"{kind} {where} {length} {other}", bytes(data)


def values_of(path):
    """The content of a file, after all that is done with it to label, convert and describe it."""
    content = read_file(path)
    source = recognize(content)
    inspect(path)
    if source.depth is not None and not source.is_2d:
        build_net(source, layout=source.layout or "nonlocal")
    return content


def check(path, whole, caplog):
    """Whether a damaged file is whole all the same; AssertionError for one that is neither whole nor refused."""
    found, message = None, ""
    try:
        found = values_of(path)
    except CheckpointError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: ") and "weights_only" not in message and len(message) < 3000
    elif path.name in HAS_CHECKSUMS:
        assert found.metadata == whole.metadata
        part = "state_dict" if path.name == "mmaction.pth" else None  # beside it are placeholders, which are not equal
        assert_same(*(content.content[part] if part else content.content for content in (found, whole)))
    if path.name == "last.ckpt":
        caplog.clear()
        taken, content = newest_checkpoint(path.parent)
        assert_same(content, whole.content)
        assert taken.name == ("best.ckpt" if message else "last.ckpt")
        assert ("Resuming from" in caplog.text) == bool(message)
    return not message


@pytest.mark.timeout(120 + NUM_DAMAGED)
def test_damaged_files_are_refused_or_whole(originals, tmp_path, caplog):
    names = list(originals)
    (tmp_path / "whole").mkdir()
    whole = {}
    for name, data in originals.items():
        (tmp_path / "whole" / name).write_bytes(data)
        whole[name] = read_file(tmp_path / "whole" / name, mapped=False)
    (tmp_path / "best.ckpt").write_bytes(originals["last.ckpt"])
    wrong, num_whole = [], 0
    for number in range(NUM_DAMAGED):
        name = names[number % len(names)]
        what, data = damaged(originals[name], random.Random(number))
        path = tmp_path / name
        path.write_bytes(data)
        try:
            num_whole += check(path, whole[name], caplog)
        except Exception as error:  # noqa: BLE001  (each is a finding)
            wrong.append((number, name, what, repr(error)))
        path.unlink()
    assert not wrong, f"{len(wrong)} of {NUM_DAMAGED}, {num_whole} whole: {wrong[:5]}"
    assert 0 < num_whole < NUM_DAMAGED


def test_every_prefix_of_a_small_file_is_refused(tmp_path):
    whole = tmp_path / "a"
    for legacy in (True, False):
        torch.save({"a": torch.ones(3)}, whole, _use_new_zipfile_serialization=not legacy)
        data = whole.read_bytes()
        for end in range(0, len(data), 3 if legacy else 11):
            whole.write_bytes(data[:end])
            with pytest.raises(CheckpointError, match=f"^{whole}: "):
                read_file(whole)
