"""Each zoo's weights give each zoo's numbers: loaded files against plain networks in the zoo's own names."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import reference_nets as peers
import torch
import weight_files as files
from reference_nets import randomize, spread
from torch.nn import functional as F

from video_gn.errors import CheckpointError
from video_gn.models import i3d
from video_gn.weights import load_into
from video_gn.weights.build import load_net

# float32 through 50 layers that do the same operations in the same order, save for the head's mean.
CLOSE = 1e-5
# Inflated kernels add up three or five terms that rounded on their own, where the 2-D network has one.
INFLATED_CLOSE = 1e-4

KINETICS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))  # Non-local's, SlowFast's and pytorchvideo's
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's, timm's and mmaction2's


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def relative(got, expected):
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


def clips(frames, px, *, num=2, seed=0):
    """Noise upon coarse patches, so that clips, and positions on the head's map, differ in their averages too."""
    size = (frames, px, px) if isinstance(px, int) else (frames, *px)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn((num, 3, 2, 4, 4), generator=generator)
    return torch.randn((num, 3, *size), generator=generator) + 3 * F.interpolate(patches, size=size, mode="trilinear")


def check_report(report, *, format, layouts, preprocessing=None, norm="batch"):
    assert report.format == format
    assert report.layout in layouts
    assert report.norm == norm
    if preprocessing is not None:
        mean, std = preprocessing
        assert tuple(report.preprocessing.mean) == pytest.approx(mean, abs=1e-6)
        assert tuple(report.preprocessing.std) == pytest.approx(std, abs=1e-6)


def check_same(net, reference, x):
    """Last maps, logits and scores; and that the scores say something about the clip."""
    net.eval()
    assert relative(net.features(x), reference.features(x)) < CLOSE
    assert relative(net.logits(x), reference.logits(x)) < CLOSE
    scores = net(x)
    assert relative(scores, reference(x)) < CLOSE
    assert 0.01 < scores.max() < 0.999 and (scores[0] - scores[-1]).abs().max() > 1e-3


# ---- the oracles themselves -----------------------------------------------------------------------


def test_the_reference_sees_every_tensor():
    """Another value for any one of them changes the last map, or the logits, by far more than the tolerance."""
    reference = randomize(peers.slowfast_i3d(width=4))
    x = clips(4, 32)
    features, logits = reference.features(x), reference.logits(x)
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    others = peers.random_state(state, seed=1)
    changes = {}
    for key in state:
        if not key.endswith("num_batches_tracked"):
            reference.load_state_dict({**state, key: others[key]}, strict=True)
            changes[key] = max(relative(reference.features(x), features), relative(reference.logits(x), logits))
    assert len(changes) == 53 * 5 + 2 and min(changes.values()) > 100 * CLOSE, min(changes, key=changes.get)


# What Python 2.7.18's cPickle writes of {"blobs": {u"model_iter": 400001, u"lr": a, "conv1_w": b}}, a and b arrays.
PYTHON2 = (
    b"\x80\x02}q\x01U\x05blobsq\x02}q\x03(X\n\x00\x00\x00model_iterq\x04J\x81\x1a\x06\x00X\x02\x00\x00\x00lrq\x05"
    b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85q\x08U\x01b\x87Rq\t(K\x01)"
    b"cnumpy\ndtype\nq\nU\x02f4q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq"
    b"\x0eb\x89U\x04abcdq\x0ftbU\x07conv1_wq\x10h\x06h\x07h\x08U\x01b\x87Rq\x11(K\x01K\x02\x85q\x12h\r\x89U\x08"
    b"\x00\x01\x02\x03'\n\xff\x80q\x13tbus."
)


def test_the_pickles_are_python_2s():
    arrays = [np.frombuffer(data, dtype="<f4") for data in (b"abcd", b"\x00\x01\x02\x03'\n\xff\x80")]
    contents = {"blobs": {"model_iter": 400001, "lr": arrays[0].reshape(()), "conv1_w": arrays[1]}}
    assert files.python2_pickle(contents, unicode_keys=frozenset({"model_iter", "lr"})) == PYTHON2


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_pickles_hold_the_arrays(tmp_path, protocol, wrapped):
    blobs = randomize(peers.nonlocal_caffe2(width=2)).blobs(pred_dims=5)
    path = files.caffe2_pkl(tmp_path / "c2.pkl", blobs, wrapped=wrapped, protocol=protocol)
    contents = pickle.loads(path.read_bytes(), encoding="latin1")
    contents = contents["blobs"] if wrapped else contents
    assert contents["model_iter"] == 400001 and contents["lr"].shape == ()
    assert contents["pred_w"].shape == (7, 64, 1, 1, 1)
    assert set(contents) > set(blobs) and "conv1_w_momentum" in contents and "res_conv1_bn_rm_momentum" not in contents
    for key, array in blobs.items():
        np.testing.assert_array_equal(contents[key], array)


# ---- 3-D weights ----------------------------------------------------------------------------------


def _caffe2(**arguments):
    pred_dims = arguments.pop("pred_dims", 2)
    return lambda path, net: files.caffe2_pkl(path, net.blobs(pred_dims=pred_dims), **arguments)


def _state(write, **arguments):
    return lambda path, net: write(path, net.state_dict(), **arguments)


SLOWFAST = {"format": "slowfast", "layouts": ["slowfast"], "preprocessing": KINETICS}
MMACTION = {"format": "mmaction", "layouts": ["mmaction"], "preprocessing": IMAGENET}
# A flat file in torchvision's names says neither whose layout nor whose pixels.
PORT = {"format": "torchvision", "layouts": ["nonlocal", None]}
# Non-local's and SlowFast's `.pkl` have the same names.
CAFFE2 = {"format": "caffe2", "layouts": [None], "preprocessing": KINETICS}
AFFINE = {"norm": "affine"}
SOFTMAX, DOT_PRODUCT = {"nonlocal_blocks": "softmax"}, {"nonlocal_blocks": "dot_product"}
FOUR_FRAMES = {"nonlocal_blocks": "softmax_4_frames"}

ZOOS = {  # the network, its arguments, the writer, the ending, the report
    "slowfast": (peers.slowfast_i3d, {}, _state(files.slowfast_pyth), "pyth", SLOWFAST),
    "slowfast-101": (peers.slowfast_i3d, {"depth": 101}, _state(files.slowfast_pyth), "pyth", SLOWFAST),
    "mmaction": (peers.mmaction_i3d, {}, _state(files.mmaction_pth), "pth", MMACTION),
    "mmaction-152": (peers.mmaction_i3d, {"depth": 152}, _state(files.mmaction_pth), "pth", MMACTION),
    "mmaction-training": (peers.mmaction_i3d, {}, _state(files.mmaction_training_pth), "pth", MMACTION),
    "port": (peers.nonlocal_port, {}, _state(files.flat_pth), "pth", PORT),
    "port-safetensors": (peers.nonlocal_port, {}, _state(files.flat_safetensors), "safetensors", PORT),
    "caffe2": (peers.nonlocal_caffe2, {}, _caffe2(), "pkl", CAFFE2),
    "caffe2-101": (peers.nonlocal_caffe2, {"depth": 101}, _caffe2(), "pkl", CAFFE2),
    "caffe2-slowfast": (peers.slowfast_caffe2, {}, _caffe2(pred_dims=5), "pkl", CAFFE2),
    "caffe2-pred-5d": (peers.nonlocal_caffe2, {}, _caffe2(pred_dims=5), "pkl", CAFFE2),
    "caffe2-bare": (peers.nonlocal_caffe2, {}, _caffe2(wrapped=False, extras=False), "pkl", CAFFE2),
    "caffe2-nln": (peers.nonlocal_caffe2, SOFTMAX, _caffe2(), "pkl", CAFFE2),
    "caffe2-nln-101": (peers.nonlocal_caffe2, SOFTMAX | {"depth": 101}, _caffe2(), "pkl", CAFFE2),
    "caffe2-slowfast-nln": (peers.slowfast_caffe2, SOFTMAX, _caffe2(), "pkl", CAFFE2),
    "slowfast-nln": (peers.slowfast_i3d, DOT_PRODUCT, _state(files.slowfast_pyth), "pyth", SLOWFAST),
    "mmaction-nl": (peers.mmaction_i3d, SOFTMAX, _state(files.mmaction_pth), "pth", MMACTION),
    "mmaction-nl-dot": (peers.mmaction_i3d, DOT_PRODUCT, _state(files.mmaction_pth), "pth", MMACTION),
    "caffe2-affine": (peers.nonlocal_caffe2, AFFINE, _caffe2(pred_dims=5), "pkl", CAFFE2),
    "caffe2-affine-nln": (peers.nonlocal_caffe2, AFFINE | FOUR_FRAMES, _caffe2(pred_dims=5), "pkl", CAFFE2),
    "caffe2-affine-text": (peers.nonlocal_caffe2, AFFINE, _caffe2(wrapped=False, protocol=0), "pkl", CAFFE2),
}


def build(zoo, path, x, **arguments):
    """The reference, and our network with its file loaded."""
    make, of_zoo, write, ending, expected = ZOOS[zoo]
    reference = spread(randomize(make(**of_zoo, **arguments)), x)
    write(path := path / f"weights.{ending}", reference)
    depth, width = of_zoo.get("depth", 50), arguments.get("width", 8)
    net = i3d(
        depth,
        layout=reference.layout,
        norm="batch",
        num_classes=7,
        width=width,
        nonlocal_blocks=of_zoo.get("nonlocal_blocks"),
    )
    check_report(load_into(net, path), **expected)
    return reference, net


SLOW = ("caffe2-affine-nln", "caffe2-nln-101", "caffe2-slowfast-nln", "slowfast-nln", "mmaction-nl-dot")


@pytest.mark.parametrize("zoo", [pytest.param(zoo, marks=pytest.mark.slow if zoo in SLOW else ()) for zoo in ZOOS])
def test_a_zoos_file_gives_its_numbers(tmp_path, zoo):
    frames = (64, 32) if "affine-nln" in zoo else (16, 8)
    x = clips(frames[0], (64, 48))
    reference, net = build(zoo, tmp_path, x)
    check_same(net, reference, x)
    check_same(net, reference, clips(frames[1], (37, 70), seed=1))


def test_folded_norms_come_with_blocks_without_norms_that_look_at_4_frames(tmp_path):
    """Non-local's config of these: NONLOCAL.USE_BN is false, and USE_AFFINE makes groups in res3."""
    x = clips(64, (32, 48))
    reference, net = build("caffe2-affine-nln", tmp_path, x, width=4)
    path = tmp_path / "weights.pkl"
    report = load_into(net, path)
    assert sum("have no norm" in left.reason for left in report.remaining) == 2 * 5
    built, about = load_net(path)
    assert (about["clip"]["num_frames"], about["clip"]["stride"]) == (128, 1)
    check_same(built, reference, x)
    words = "has non-local blocks of weighting 'softmax_4_frames', the network has 'softmax'. Set model.net"
    whole = i3d(norm="batch", num_classes=7, width=4, nonlocal_blocks="softmax").eval()
    with pytest.raises(CheckpointError, match=words):
        load_into(whole, path)
    whole.load_state_dict(net.state_dict())
    assert relative(whole(x), net(x)) > 10 * CLOSE, "the groups show"
    with pytest.raises(ValueError, match=r"multiple of 32 for layout 'nonlocal' .* 'softmax_4_frames', got 40"):
        net(clips(40, 32))
    bare = i3d(norm="none", num_classes=7, width=4, nonlocal_blocks="softmax_4_frames").eval()
    load_into(bare, path)
    check_same(bare, reference, x)


def test_a_conversion_to_affine_keeps_no_classifier(tmp_path):
    """Non-local's modify_caffe2_ftvideo.py deletes pred_w and pred_b."""
    reference = randomize(peers.nonlocal_caffe2(norm="affine"))
    blobs = {key: array for key, array in reference.blobs().items() if not key.startswith("pred")}
    path = files.caffe2_pkl(tmp_path / "affine_model_400k.pkl", blobs, wrapped=False, extras=False)
    net = i3d(layout="nonlocal", norm="batch", num_classes=7, width=8).eval()
    fresh = net.classifier.weight.clone()
    load_into(net, path)
    assert relative(net.features(clips(8, 48)), reference.features(clips(8, 48))) < CLOSE
    assert torch.equal(net.classifier.weight, fresh)


@pytest.mark.parametrize("zoo", ["slowfast", "mmaction", "caffe2"])
def test_a_zoos_file_gives_its_numbers_on_a_larger_frame(tmp_path, zoo):
    x = clips(8, 256)
    reference, net = build(zoo, tmp_path, x, width=4)
    check_same(net, reference, x)
    if zoo != "mmaction":
        assert reference.position_logits(x).shape[1] == 4
        x = clips(8, (256, 288), seed=1)
        check_same(net, reference, x)
        # Softmax at each position and then the mean: the other order would show.
        assert relative(reference.logits(x).softmax(-1), net(x)) > 10 * CLOSE


def test_a_pickle_in_a_torch_file_is_not_executed(tmp_path):
    reference = randomize(peers.mmaction_i3d())
    path = files.mmaction_training_pth(tmp_path / "epoch_100.pth", reference.state_dict(), runs_code=True)
    net = i3d(layout="mmaction", norm="batch", num_classes=7, width=8)
    files.BUILT.clear()
    with contextlib.suppress(CheckpointError):  # refused or read around: both are safe
        load_into(net, path)
    assert files.BUILT == []


def test_our_own_safetensors(tmp_path):
    """With no word of whose they are: in pytorchvideo's names, so in its layout."""
    one, other = (i3d(layout="slowfast", norm="group", num_groups=4, num_classes=7, width=8).eval() for _ in range(2))
    path = files.flat_safetensors(tmp_path / "own.safetensors", randomize(one).state_dict())
    report = load_into(other, path)
    assert report.format in ("video_gn", "pytorchvideo") and report.norm == "group"
    x = clips(8, 40)
    assert torch.equal(other(x), one(x))


@pytest.fixture(scope="session")
def hub_net():
    from pytorchvideo.models.hub import i3d_r50

    return randomize(i3d_r50(pretrained=False))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_pytorchvideos_own_network(tmp_path, hub_net, prefix):
    path = files.pytorchvideo_pyth(tmp_path / "I3D_8x8_R50.pyth", hub_net.state_dict(), prefix=prefix)
    net = i3d(layout="slowfast", norm="batch").eval()
    report = load_into(net, path)
    check_report(report, format="pytorchvideo", layouts=["slowfast"], preprocessing=KINETICS)
    if prefix:
        for key, value in hub_net.state_dict().items():
            assert torch.equal(net.state_dict()[key], value), key
        return
    x = clips(8, 193, num=1)  # the smallest that its 7 x 7 pool fits
    maps = []
    handle = hub_net.blocks[5].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    expected = hub_net(x)
    handle.remove()
    assert relative(net.features(x), maps[0]) < CLOSE
    assert relative(net.logits(x), expected) < CLOSE
    assert relative(net(x), expected.softmax(-1)) < CLOSE


# ---- 2-D weights: every frame of a video of one picture has the picture's maps ----------------------


def pictures(px):
    return clips(1, px)[:, :, 0]


def still(picture, frames):
    return picture[:, :, None].expand(-1, -1, frames, -1, -1)


def our_stages(net, x):
    maps = {}
    for name, block in zip(("pool1", "res2", "pool2", "res3", "res4", "res5"), net.blocks, strict=False):
        x = maps[name] = block(x)
    return maps


def check_frames(net, expected, picture, frames):
    """Every frame of every stage, in a net whose padding in time is circular."""
    maps = our_stages(net, still(picture, frames))
    for stage, expected_map in expected.items():
        for number, frame in enumerate(maps[stage].unbind(2)):
            assert relative(frame, expected_map) < INFLATED_CLOSE, (stage, number)


@pytest.fixture(scope="session")
def torchvision_net():
    from torchvision.models import resnet50

    return randomize(resnet50(weights=None))


@pytest.fixture(scope="session")
def torchvision_inflated(torchvision_net, tmp_path_factory):
    path = files.flat_pth(tmp_path_factory.mktemp("torchvision") / "resnet50.pth", torchvision_net.state_dict())
    net = i3d(layout="slowfast", norm="batch", num_classes=1000).eval()
    check_report(load_into(net, path), format="torchvision", layouts=[None], preprocessing=IMAGENET)
    return net


# How far a stage's convolutions reach in time: 2 in conv1 (5x7x7), 1 in each inflated block.
REACH = {"pool1": 2, "res2": 3, "pool2": 0, "res3": 2, "res4": 3, "res5": 1}


def test_frames_that_no_padding_reached(torchvision_net, torchvision_inflated):
    frames = 40
    picture = pictures(32)
    expected = peers.stages_2d(torchvision_net, picture)
    maps = our_stages(torchvision_inflated, still(picture, frames))
    first, end = 0, frames
    for stage, frame_map in maps.items():
        if stage == "pool2":  # a frame of it sees two
            first, end = -(-first // 2), end // 2
        first, end = first + REACH[stage], end - REACH[stage]
        assert end > first
        for number in range(first, end):
            if stage in expected:
                assert relative(frame_map[:, :, number], expected[stage]) < INFLATED_CLOSE, (stage, number)
    assert (first, end) == (9, 11)
    # Padding with zeros does reach the others.
    assert relative(maps["res5"][:, :, 0], expected["res5"]) > 100 * INFLATED_CLOSE


def test_torchvisions_resnet50_inflated(torchvision_net, torchvision_inflated):
    net, picture = peers.make_circular(copy.deepcopy(torchvision_inflated)), pictures(64)
    check_frames(net, peers.stages_2d(torchvision_net, picture), picture, frames=4)
    assert relative(net.logits(still(picture, 4)), torchvision_net(picture)) < INFLATED_CLOSE


@pytest.mark.parametrize(("name", "norm"), [("resnet50", "batch"), ("resnet50_gn", "group")])
def test_timms_networks_inflated(tmp_path, name, norm):
    timm = pytest.importorskip("timm")
    reference = randomize(timm.create_model(name, pretrained=False))
    path = files.flat_safetensors(tmp_path / "model.safetensors", reference.state_dict(), metadata={"format": "pt"})
    net = i3d(layout="slowfast", norm=norm, num_classes=1000).eval()
    report = load_into(net, path)
    check_report(report, format="torchvision", layouts=[None], preprocessing=IMAGENET, norm=norm)
    peers.make_circular(net)
    picture = pictures(64)
    check_frames(net, peers.stages_2d(reference, picture), picture, frames=4)
    assert relative(net.logits(still(picture, 4)), reference(picture)) < INFLATED_CLOSE


@pytest.mark.parametrize("depth", [101, 152])
def test_deeper_networks_inflated(tmp_path, depth):
    import torchvision

    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
        ours = peers.ReferenceNet(
            "torchvision", "slowfast", depth=depth, width=64, num_classes=1000, dims=2
        ).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}

    reference = randomize(peers.ReferenceNet("torchvision", "slowfast", depth=depth, dims=2))
    path = files.flat_pth(tmp_path / f"resnet{depth}.pth", reference.state_dict())
    net = i3d(depth, layout="slowfast", norm="batch", num_classes=7, width=8).eval()
    check_report(load_into(net, path), format="torchvision", layouts=[None], preprocessing=IMAGENET)
    picture = pictures(48)
    check_frames(peers.make_circular(net), reference.stages(picture), picture, frames=4)
    assert relative(net.logits(still(picture, 4)), reference.logits(picture)) < INFLATED_CLOSE


@pytest.mark.parametrize("num_classes", [1000, 7])
def test_nonlocals_imagenet_start_inflated(tmp_path, num_classes):
    reference = randomize(peers.nonlocal_caffe2(dims=2, num_classes=1000))
    path = files.caffe2_pkl(tmp_path / "r50_pretrain_clean.pkl", reference.blobs(), extras=False)
    net = i3d(layout="nonlocal", norm="batch", num_classes=num_classes, width=8).eval()
    fresh = net.classifier.weight.clone()
    report = load_into(net, path)
    check_report(report, format="caffe2", layouts=[None, "nonlocal"], preprocessing=KINETICS)
    picture = pictures(64)
    check_frames(peers.make_circular(net), reference.stages(picture), picture, frames=8)
    if num_classes == 1000:
        assert relative(net.logits(still(picture, 8)), reference.logits(picture)) < INFLATED_CLOSE
    assert torch.equal(net.classifier.weight, fresh) == (num_classes == 7)  # its own, of 7 classes


def test_detectrons_group_norm_network_inflated(tmp_path):
    """Ours is fed RGB in [0, 1], normalized as the report says; theirs BGR in 0..255 minus the mean. 32 groups."""
    reference = randomize(peers.detectron_gn(width=32, num_groups=32))
    path = files.caffe2_pkl(tmp_path / "R-50-GN.pkl", reference.blobs(), extras=False)
    net = i3d(layout="slowfast", norm="group", num_classes=7, width=32).eval()
    report = load_into(net, path)
    check_report(report, format="detectron", layouts=[None], norm="group")
    rgb = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    rgb *= torch.linspace(0.2, 1, 64)
    theirs = rgb.flip(1) - torch.tensor(peers.DETECTRON_MEAN)[:, None, None]
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (report.preprocessing.mean, report.preprocessing.std)
    )
    ours = (rgb / 255 - mean) / std
    check_frames(peers.make_circular(net), reference.stages(theirs), ours, frames=4)
    assert relative(net.logits(still(ours, 4)), reference.logits(theirs)) < INFLATED_CLOSE
