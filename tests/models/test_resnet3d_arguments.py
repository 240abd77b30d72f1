"""The network's arguments: they rebuild it, copies keep them, and errors name them."""

import copy
import logging
import pickle
import warnings
from typing import get_args, get_type_hints

import pytest
import torch
from nets import SMALL, clips, small
from torch import nn

from video_gn.models import I3D, LAYOUTS, NORMS, i3d, is_norm, min_clip
from video_gn.models.tables import DEPTHS


def test_literals_are_the_tables():
    hints = get_type_hints(i3d)
    assert set(get_args(hints["depth"])) == set(DEPTHS)
    assert set(get_args(hints["layout"])) == set(LAYOUTS)
    assert set(get_args(hints["norm"])) == set(NORMS)
    assert issubclass(hints["return"], nn.Module)


# ---- arguments, classifier, copies ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 50},
        {"depth": 101, "layout": "mmaction", "norm": "batch", "width": 8, "num_classes": 7, "norm_momentum": 0.01},
        {"depth": 50, "width": 32, "channels_per_group": 16, "dropout": 0.0, "norm_eps": 1e-3, "in_channels": 1},
        {"depth": 50, "norm": "layer", "zero_init_last_norm": False},
        {"depth": 50, "norm": "batch_renorm", "norm_options": {"r_max": 2.0, "d_max": 1.0}, "drop_path": 0.2},
        {"depth": 101, "norm": "layer", "nonlocal_blocks": "dot_product"},
    ],
)
def test_arguments_rebuild_the_net(arguments):
    with torch.device("meta"):
        net = i3d(**arguments)
        again = i3d(**pickle.loads(pickle.dumps(net.arguments)))
    assert again.arguments == net.arguments
    assert repr(again) == repr(net)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    values = [*net.arguments.values(), *(net.arguments["norm_options"] or {}).values()]
    assert all(type(v) in (str, int, float, bool, type(None)) or v is net.arguments["norm_options"] for v in values)
    assert set(net.arguments) == set(get_type_hints(i3d)) - {"return"}
    assert (net.num_classes, net.layout) == (net.arguments["num_classes"], net.arguments["layout"])
    norms = {(m.eps, getattr(m, "momentum", None)) for m in net.modules() if is_norm(m)}
    assert norms == {
        (net.arguments["norm_eps"], net.arguments["norm_momentum"] if "batch" in net.arguments["norm"] else None)
    }


def test_arguments_tell_the_groups_that_were_built():
    with torch.device("meta"):
        assert i3d(50).arguments == i3d(50, num_groups=32).arguments
        assert i3d(50).arguments["num_groups"] == 32
        net = i3d(50, channels_per_group=16)
        assert (net.arguments["num_groups"], net.arguments["channels_per_group"]) == (None, 16)
        assert {m.num_channels // m.num_groups for m in net.modules() if is_norm(m)} == {16}
        with pytest.warns(UserWarning, match="num_groups=32 is ignored: norm 'batch' has no groups") as caught:
            net = i3d(50, norm="batch", num_groups=32)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert net.arguments == i3d_arguments(norm="batch")


def test_a_width_alone_picks_groups_that_divide(caplog):
    caplog.set_level(logging.INFO, "video_gn")
    for width, groups in ((8, 4), (24, 12), (48, 24)):
        caplog.clear()
        with torch.device("meta"):
            net = i3d(50, width=width, num_classes=2)
            assert i3d(**net.arguments).arguments == net.arguments
        assert net.arguments["num_groups"] == groups
        assert {m.num_groups for m in net.modules() if is_norm(m)} == {groups}
        assert caplog.messages == [f"num_groups: {groups}, since 32 do not divide {width} channels"]


def i3d_arguments(**arguments):
    with torch.device("meta"):
        return i3d(50, **arguments).arguments


def test_numpy_counts_become_plain():
    import numpy as np

    arguments = small(num_classes=np.int64(7), dropout=np.float64(0.25)).arguments
    assert (type(arguments["num_classes"]), type(arguments["dropout"])) == (int, float)
    arguments = small(norm="batch_renorm", norm_options={"r_max": np.float64(2.0)}).arguments
    assert type(arguments["norm_options"]) is dict and type(arguments["norm_options"]["r_max"]) is float


def test_norm_options_reach_every_norm():
    with torch.device("meta"):
        net = i3d(50, norm="batch_renorm", norm_options={"r_max": 2.0, "d_max": 0.25})
        assert i3d(50, norm="batch_renorm", norm_options={}).arguments == i3d_arguments(norm="batch_renorm")
    norms = [m for m in net.modules() if is_norm(m)]
    assert len(norms) == 53
    assert {(m.r_max, m.d_max) for m in norms} == {(2.0, 0.25)}


def test_arguments_of_an_older_checkpoint_make_the_same_net():
    new = ("norm_options", "drop_path", "nonlocal_blocks")
    old = {name: value for name, value in i3d_arguments().items() if name not in new}
    assert i3d_arguments(**{name: value for name, value in old.items() if name != "depth"}) == i3d_arguments()


def test_replace_classifier():
    net = small().double().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    new = net.replace_classifier(9)
    assert net.classifier is new
    assert net.num_classes == net.arguments["num_classes"] == 9
    assert new.weight.shape == (9, 32 * SMALL["width"]) and new.weight.dtype == torch.float64
    assert float(new.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert torch.equal(new.bias, torch.zeros(9, dtype=torch.float64))
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("blocks.6.proj"))
    assert net(clips(1, 8, 40, dtype=torch.float64)).shape == (1, 9)
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 1, got 0"):
        net.replace_classifier(0)


def test_copies_and_pickles():
    net = small().eval()
    x = clips(1, 8, 40)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(other, I3D)
        assert torch.equal(other(x), net(x))
        other.replace_classifier(3)
        assert net.num_classes == SMALL["num_classes"]


def test_import_is_quiet():
    import subprocess
    import sys

    code = "import video_gn.models"
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_builds_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in NORMS:
            small(norm=kind)


# ---- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_shortest_and_smallest_clip(layout):
    frames, px = min_clip(layout)
    net = small(layout=layout, norm="layer")
    assert net(clips(2, frames, px)).shape == (2, 5)
    assert net.eval()(clips(2, frames, px)).isfinite().all()
    message = rf"at least {frames} frames of {px} x {px} px for layout '{layout}', got {{}} frames of {{}} x {{}} px"
    for shape in ((frames - 1, px, px), (frames, px - 1, px + 1), (frames, px + 1, px - 1)):
        with pytest.raises(ValueError, match=message.format(*shape)):
            net(torch.zeros(1, 3, *shape))


def test_smallest_sizes_are_what_torch_takes():
    # Without the check: one px less, and a pool of the nonlocal stem has nothing left.
    net = small(norm="layer")
    net.check_clip = lambda x: None
    with pytest.raises(RuntimeError, match=r"(?i)output size"):
        net(clips(1, 8, 4))
    with pytest.raises(RuntimeError, match=r"(?i)output size"):
        net(clips(1, 6, 5))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 40, 40), r"must be of shape \(N, 3, T, H, W\), got \(3, 8, 40, 40\)"),
        ((2, 8, 3, 40, 40), r"must be of shape \(N, 3, T, H, W\), got \(2, 8, 3, 40, 40\)\. Put the channels before"),
    ],
)
def test_shape_errors(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_bytes_are_refused():
    with pytest.raises(TypeError, match=r"clips must be floating point, got torch\.uint8\. Scale and normalize"):
        small()(torch.zeros(1, 3, 8, 40, 40, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 34}, r"depth must be one of \[50, 101, 152\], got 34"),
        ({"layout": "nl"}, r"layout must be one of \['mmaction', 'nonlocal', 'slowfast'\], got 'nl'"),
        ({"norm": "weight"}, r"norm must be one of .*, got 'weight'"),
        (
            {"width": 16, "num_groups": 32},
            r"divide the 16 channels of the stem's norm blocks\.0\.norm \(width=16\), got 32\. Use num_groups=16",
        ),
        ({"width": 8, "channels_per_group": 16}, r"channels_per_group must divide the 8 channels of the stem's norm"),
        ({"num_groups": 8, "channels_per_group": 8}, r"num_groups and channels_per_group must not both be set"),
        ({"num_classes": 0}, r"num_classes must be a whole number of at least 1, got 0"),
        ({"width": 0}, r"width must be a whole number of at least 1, got 0"),
        ({"width": 64.0}, r"width must be a whole number of at least 1, got 64\.0"),
        ({"in_channels": -1}, r"in_channels must be a whole number of at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1\.0\. Usual values are 0\.05 to 0\.2"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0\.1"),
        ({"norm_options": 2.0}, r"norm_options must be a table of numbers or null \(None\), got 2\.0"),
        ({"norm_options": {"r_max": "2"}}, r"norm_options must be a table of numbers or null \(None\), got \{'r_max'"),
        ({"norm_options": {"r_max": 2.0}}, r"norm_options must be empty for norm 'group', got 'r_max'"),
        ({"norm": "batch_renorm", "norm_options": {"r_max": 0.5}}, r"r_max must be at least 1 and finite, got 0\.5"),
        ({"norm_eps": 0.0}, r"eps must be above 0, got 0\.0"),
        ({"norm_momentum": 2.0}, r"momentum must be in \[0, 1\], got 2\.0"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        i3d(**arguments)


def test_min_clip_error():
    with pytest.raises(ValueError, match=r"layout must be one of .*, got 'tsn'"):
        min_clip("tsn")
