"""Exported files label videos as the checkpoint does, by every engine; what differs is not written."""

import contextlib
import io
import itertools
import json
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from media import write_numbered_video
from nets import randomize
from small import ABOUT

from video_gn import load
from video_gn.commands import weights
from video_gn.errors import CheckpointError, ConfigError, ManifestError
from video_gn.explaining import explain
from video_gn.export import export, int8, quantize, writing
from video_gn.export.reading import describe_onnx
from video_gn.lists.records import VideoRecord
from video_gn.models import LAYOUTS, build_network, hub_nets, resnet3d
from video_gn.weights.about import KEY
from video_gn.weights.files import read_file

pytestmark = [pytest.mark.slow, pytest.mark.needs_engines]


VIEWS = {**ABOUT["views"], "num_clips": 1, "short_side_px": 52, "crop_px": 48}


def write_checkpoint(path, *, norm, px, tell_apart=None, **more):
    """A net of random weights; clips (N, 3, T, H, W) to tell apart get logits around 0."""
    torch.manual_seed(0)
    fixed = {} if "network" in more else {"zero_init_last_norm": False}
    net = build_network({"norm": norm, "width": 8, "num_classes": 3, **fixed, **more})
    if "network" in more:
        randomize(net)  # the last norms too
    with torch.no_grad():
        net.classifier.weight.normal_(std=0.3)
        if tell_apart is not None:
            logits_NY = net.eval().logits(tell_apart)
            net.classifier.weight /= logits_NY.std(0)[:, None]
            net.classifier.bias[:] = -(logits_NY / logits_NY.std(0)).mean(0)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    views = {**ABOUT["views"], "short_side_px": px + 4, "crop_px": px}
    torch.save({KEY: {"net": net.arguments, **ABOUT, "views": views}, "state_dict": state}, path)


@pytest.fixture(scope="module", autouse=True)
def few_blocks():
    """One block a stage, two where a second is another (without a projection) or a Non-local one stands after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet3d.DEPTHS, 50, (1, 2, 2, 1))
        patch.setitem(resnet3d.NONLOCAL_AFTER, 50, ((1,), (1,)))
        for name, builder in hub_nets._BUILDERS.items():
            patch.setitem(hub_nets._BUILDERS, name, partial(shortened, builder))
        yield


def shortened(builder, width, norm):
    net = builder(width, norm)
    for stage in net.blocks[1:-1]:
        stage.res_blocks = stage.res_blocks[:2]
    return net


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with a video, gn.ckpt, bn.ckpt, and gn.onnx with what its export printed."""
    here = tmp_path_factory.mktemp("export")
    write_numbered_video(here / "v.mp4", 40, size=(80, 60))
    write_checkpoint(here / "gn.ckpt", layout="nonlocal", norm="group", px=32)
    write_checkpoint(here / "bn.ckpt", layout="slowfast", norm="batch", px=48)
    words = [str(here / "gn.ckpt"), str(here / "gn.onnx"), "--check", str(here / "v.mp4")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(weights, "set_up_logging", lambda: None)  # it is for the whole process
        assert weights.main("export", words) == 0
    (here / "printed").write_text(printed.getvalue())
    return here


def test_what_export_prints(here):
    lines = (here / "printed").read_text().splitlines()
    clips = ("random 1x8x32x32", "random 2x12x32x42", str(here / "v.mp4"))
    starts = [
        f"{engine}, {name}: same label, relative error " for name in clips for engine in ("onnxruntime", "openvino")
    ]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert all(0 < float(line.rpartition(" ")[2]) < 1e-4 for line in lines)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("crops", ["center", "three", "full"])
def test_labels_timelines_and_features(here, engine, crops):
    ours = load(here / "gn.ckpt", crops=crops)
    theirs = load(here / "gn.onnx", crops=crops, engine=engine)
    assert theirs.classes == ours.classes and theirs.device.type == "cpu"
    for function in ("predict", "timeline"):
        mine, other = (getattr(p, function)(here / "v.mp4", top_k=3)["top"] for p in (ours, theirs))
        assert [entry["label"] for entry in mine] == [entry["label"] for entry in other]
        np.testing.assert_allclose([e["score"] for e in mine], [e["score"] for e in other], atol=2e-6)  # 6 digits
    mine, other = (p.embed(here / "v.mp4").clips for p in (ours, theirs))
    np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_explain_needs_the_checkpoint(here):
    with pytest.raises(ConfigError, match=r"explain must have torch's network, got .*gn.onnx. Give the checkpoint"):
        explain(load(here / "gn.onnx"), here / "v.mp4")


def test_a_program_of_torch(here, monkeypatch):
    found = export(here / "bn.ckpt", here / "bn.pt2")
    assert [parity.engine for parity in found] == ["torch.export"] * 2
    extra = {KEY: ""}
    module = torch.export.load(here / "bn.pt2", extra_files=extra).module()
    words = json.loads(extra[KEY])
    assert words["classes"] == ABOUT["classes"] and words["net"]["layout"] == "slowfast"
    frames_NTHWC = torch.randint(256, (1, 5, 40, 270, 3), dtype=torch.uint8)
    scores_NY, _ = module(frames_NTHWC)
    wanted = load(here / "bn.ckpt").scores(frames_NTHWC.permute(0, 1, 4, 2, 3))
    np.testing.assert_allclose(scores_NY.detach(), wanted, rtol=1e-4)
    with pytest.raises(CheckpointError, match="a program of torch.export, whose reader evaluates text"):
        read_file(here / "bn.pt2")
    with pytest.raises(ConfigError, match="the target must end in .onnx or .pt2, got 'a.engine'"):
        export(here / "bn.ckpt", "a.engine")

    right = writing._program_scorer

    def off_by_a_thousandth(path):
        score = right(path)
        return lambda views: [1.001 * result for result in score(views)]

    monkeypatch.setattr(writing, "_program_scorer", off_by_a_thousandth)
    monkeypatch.setattr(writing, "trace", lambda *_, **__: torch.export.load(here / "bn.pt2"))
    with pytest.raises(CheckpointError, match="other.pt2: not written: torch.export differs .* 1.0e-03 .* than 0.0001"):
        export(here / "bn.ckpt", here / "other.pt2")
    assert not [*here.glob("other*"), *here.glob(".*")]


@pytest.mark.needs_real_videos
def test_labels_of_real_clips(tmp_path, real_videos, monkeypatch):
    monkeypatch.setitem(resnet3d.DEPTHS, 50, (1, 1, 1, 1))
    clips = sorted((real_videos / "clips").iterdir())
    assert len(clips) == 13
    dataset = writing.views_of({**ABOUT, "views": VIEWS})
    views_VTCHW = torch.cat([dataset.read(0, VideoRecord(str(clip), None)).frames_VTCHW for clip in clips])
    mean, std = (torch.tensor(ABOUT[name]).view(3, 1, 1) for name in ("mean", "std"))
    x_NCTHW = ((views_VTCHW / 255 - mean) / std).transpose(1, 2)
    for layout, norm in itertools.product(LAYOUTS, ("group", "batch")):
        write_checkpoint(tmp_path / "c.ckpt", layout=layout, norm=norm, px=48, tell_apart=x_NCTHW)
        export(tmp_path / "c.ckpt", tmp_path / "c.onnx")
        wanted_VY = load(tmp_path / "c.ckpt").scores(views_VTCHW)
        assert len(set(wanted_VY.argmax(1))) == 3
        for engine in ("onnxruntime", "openvino"):
            found_VY = load(tmp_path / "c.onnx", engine=engine).scores(views_VTCHW)
            assert (found_VY.argmax(1) == wanted_VY.argmax(1)).all()
            np.testing.assert_allclose(found_VY, wanted_VY, rtol=1e-4)


def test_int8(here, monkeypatch):
    """Labels are what torch says, so that top-1 before is 1; top-1 after is counted in the files' own predictions."""
    import onnx

    videos = [write_numbered_video(here / f"{i}.mp4", 16, size=(64 + 8 * i, 64), first_number=37 * i) for i in range(9)]
    ours = load(here / "gn.ckpt")
    names = [ours.predict(video)["top"][0]["label"] for video in videos]
    rows = "".join(f'{video.name},"{name}"\n' for video, name in zip(videos, names, strict=True))
    (here / "list.csv").write_text("path,label\n" + rows)
    found = quantize(here / "gn.onnx", here / "int8.onnx", here / "list.csv", most_lost=1)
    assert [(q.engine, q.num_videos, q.top1[0]) for q in found] == [("onnxruntime", 6, 1.0), ("openvino", 6, 1.0)]
    assert found[0].megabytes == tuple((here / name).stat().st_size / 1e6 for name in ("gn.onnx", "int8.onnx"))
    assert found[0].megabytes[1] < 0.4 * found[0].megabytes[0]
    scored = [place for place in range(9) if place % 3]
    for quantized in found:
        theirs = load(here / "int8.onnx", engine=quantized.engine)
        assert theirs.classes == ours.classes and theirs.num_clips == ours.num_clips
        results = [theirs.predict(videos[place], top_k=3)["top"] for place in scored]
        right = sum(top[0]["label"] == names[place] for place, top in zip(scored, results, strict=True))
        assert quantized.top1[1] == right / 6
        for place, top in zip(scored, results, strict=True):
            wanted = {entry["label"]: entry["score"] for entry in ours.predict(videos[place], top_k=3)["top"]}
            assert sum(entry["score"] for entry in top) == pytest.approx(1, abs=1e-5)
            assert all(abs(entry["score"] - wanted[entry["label"]]) < 0.1 for entry in top)  # steps of 1/128

    monkeypatch.setattr(int8, "_quantized", lambda *_: onnx.load(here / "int8.onnx"))
    assert "precision  int8 (" in describe_onnx(here / "int8.onnx")
    with pytest.raises(CheckpointError, match=r"no.onnx: not written: int8 loses .* on 6 videos .*, more than -2"):
        quantize(here / "gn.onnx", here / "no.onnx", here / "list.csv", most_lost=-2)
    (here / "unlabelled.csv").write_text("path\n0.mp4\n1.mp4\n")
    with pytest.raises(ManifestError, match="unlabelled.csv: must hold labelled videos"):
        quantize(here / "gn.onnx", here / "no.onnx", here / "unlabelled.csv")
    assert not [*here.glob("no*"), *here.glob(".*")]


def test_one_video_of_a_hundred_may_be_lost():
    assert int8.Quantized("openvino", 100, (1.0, 0.99), (1, 1), (1, 1)).lost == 0.01
    assert int8.Quantized("openvino", 120, (0.5, 61 / 120), (1, 1), (1, 1)).lost == -1 / 120


def test_int8_without_its_package(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"^nncf is not installed. Install it: pip install 'video-gn\[int8\]'"):
        weights.main("export", [str(here / "gn.ckpt"), str(here / "no.onnx"), "--int8", "list.csv"])
    with pytest.raises(ConfigError, match=r"the target must end in .onnx with --int8, got 'no.pt2'"):
        weights.main("export", [str(here / "gn.ckpt"), "no.pt2", "--int8", "list.csv"])
    for lost in ("2", "nan"):
        with pytest.raises(ConfigError, match=r"--most_lost must be in \[0, 1\], got"):
            weights.main("export", ["no.ckpt", "no.onnx", "--int8", "list.csv", "--most_lost", lost])


def test_a_list_is_refused_before_the_network_is_exported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", SimpleNamespace(set_log_level=lambda _: None))
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    with pytest.raises(ManifestError, match="must hold labelled videos"):
        weights.main("export", ["no.ckpt", "no.onnx", "--int8", str(tmp_path / "list.txt")])


def test_where_float32_itself_is_far_off(tmp_path, monkeypatch):
    """Instance Norm on a last map of few cells: no engine is farther from float64 than twice torch's float32."""
    monkeypatch.setitem(resnet3d.DEPTHS, 50, (3, 4, 6, 3))
    write_checkpoint(tmp_path / "i.ckpt", layout="nonlocal", norm="instance", px=64)
    found = export(tmp_path / "i.ckpt", tmp_path / "i.onnx")
    assert max(parity.own_error for parity in found) > 1e-4
    assert all(parity.error <= max(1e-4, 2 * parity.own_error) and parity.own_error < 1e-3 for parity in found)


def test_nonlocal_blocks(tmp_path):
    """Export itself compares random clips of three sizes by every engine."""
    write_checkpoint(tmp_path / "nl.ckpt", layout="mmaction", norm="group", px=64, nonlocal_blocks="softmax")
    assert all(parity.error < 1e-4 for parity in export(tmp_path / "nl.ckpt", tmp_path / "nl.onnx"))
    write_checkpoint(tmp_path / "4.ckpt", layout="nonlocal", norm="group", px=64, nonlocal_blocks="softmax_4_frames")
    with pytest.raises(ConfigError, match="export must have a net whose frames are free, got .*: its non-local blocks"):
        export(tmp_path / "4.ckpt", tmp_path / "4.onnx")


@pytest.mark.parametrize(
    ("network", "norm", "width"), [("x3d_s", "group", 4), ("slow_r50", "batch", 8), ("r2plus1d_r50", "group", 8)]
)
def test_networks_of_the_hub(here, tmp_path, network, norm, width):
    """Export itself compares random clips, and a video of a clip of several positions, by every engine."""
    checkpoint, exported = tmp_path / "hub.ckpt", tmp_path / "hub.onnx"
    write_checkpoint(checkpoint, network=network, norm=norm, width=width, px=32)
    assert all(parity.error < 1e-4 for parity in export(checkpoint, exported, videos=[str(here / "v.mp4")]))
    ours = load(checkpoint, crops="full")
    frames_VTCHW = torch.randint(256, (2, 16, 3, 40, 264), dtype=torch.uint8)
    for engine in ("onnxruntime", "openvino"):
        theirs = load(exported, engine=engine, crops="full")
        assert theirs.net.num_features == ours.net.num_features
        for function in ("scores", "features"):
            mine, other = (getattr(p, function)(frames_VTCHW) for p in (ours, theirs))
            assert np.linalg.norm(other - mine) < 1e-4 * np.linalg.norm(mine)  # export's own measure
        np.testing.assert_allclose(theirs.embed(here / "v.mp4").video, ours.embed(here / "v.mp4").video, atol=1e-4)
    if network == "x3d_s":
        assert all(parity.error < 1e-4 for parity in export(checkpoint, tmp_path / "hub.pt2"))
