"""Small networks under the names of every zoo, for the tests of this folder."""

import pytest
import torch

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.weights import load_into
from video_gn.weights.keymaps import KEYMAPS

LAYOUTS = {"pytorchvideo": "slowfast", "slowfast": "slowfast", "mmaction": "mmaction"}


def small(norm="batch", *, layout="slowfast", num_classes=5, **more):
    if norm == "group":
        more.setdefault("num_groups", 2)
    return i3d(50, layout=layout, norm=norm, width=4, num_classes=num_classes, **more)


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net


def write(path, net, zoo, change=lambda state: None):
    """Under a zoo's names; "video_gn" is a checkpoint of ours. Caffe2's names know no counts of batches."""
    if zoo == "video_gn":
        state = {f"net.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
        change(state)
        torch.save({"video_gn": {"net": net.arguments}, "state_dict": state}, path)
        return path
    named = {KEYMAPS[zoo].to_theirs(name): tensor.clone() for name, tensor in net.state_dict().items()}
    state = {name: tensor for name, tensor in named.items() if name is not None}
    assert len(state) == len(net.state_dict()) - (53 if zoo == "caffe2" else 0)
    change(state)
    torch.save({"state_dict": state}, path)
    return path


def copy_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refused(net, path, match, **options):
    """The load is refused with these words, and the network is as it was."""
    before = copy_of(net)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_into(net, path, **options)
    assert str(path) in str(caught.value)
    assert same(before, net.state_dict())
    return caught.value


def accounted(report, state, net):
    """Every name of the file stands in the report once, and so does every name of the network."""
    assert sorted(e.key for e in report.entries) == sorted(state)
    given = [e.target for e in report.entries if e.status == "taken" or e.status in ("misshapen", "unfit")]
    names = [*given, *(r.target for r in report.remaining)]
    assert sorted(names) == sorted(net.state_dict())


def to_ours(zoo, key):
    return key.removeprefix("net.") if zoo == "video_gn" else KEYMAPS[zoo].to_ours(key)
