import ctypes
import gc
import json
import shutil
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from video_gn.bench import _train_step as train_step
from video_gn.bench import train
from video_gn.bench._train_step import Contender, TrainSetup, build, make_step, peak_bytes
from video_gn.bench.train import bench_train, check_targets, format_page, list_contenders, ratios
from video_gn.errors import ConfigError
from video_gn.models.norms import NORMS

TINY = TrainSetup(num_clips=2, frames=8, size=32, width=4, layout="slowfast", device="cpu")
BEST = "channels_last_3d"


def test_the_page_and_the_figures_of_every_norm():
    found = bench_train(TINY, formats=[BEST], precisions=["float32"], memory=False, rounds=1)
    page = format_page(found)
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"machine", "setup", "rounds", "contenders", "targets", "targets_apply", "notes"}
    assert {"processor", "num_threads", "torch", "device"} <= set(found["machine"])
    assert found["setup"] == {**found["setup"], "num_clips": 2, "frames": 8, "size": 32, "width": 4, "device": "cpu"}
    assert set(found["contenders"]) == {
        *(f"{norm} {BEST} float32" for norm in NORMS),
        f"group {BEST} float32 checkpointed",
        "pytorchvideo contiguous float32",
        f"pytorchvideo {BEST} float32",
    }
    for name, figures in found["contenders"].items():
        assert name.split()[0] in page
        assert figures["min_ms"] <= figures["median_ms"] <= figures["max_ms"]
        assert figures["peak_mb"] is None
    group, batch = (found["contenders"][f"{norm} {BEST} float32"] for norm in ("group", "batch"))
    assert group["to_batch"]["time"] == group["median_ms"] / batch["median_ms"]
    assert not found["targets_apply"]
    assert "do not hold" in page


def test_ratios_are_of_the_medians():
    bests = [Contender(n, BEST, p) for n in ("batch", "group") for p in ("float32", "bfloat16")]
    rest = [Contender("group", BEST, "float32", checkpointed=True), Contender("pytorchvideo", "contiguous", "float32")]
    medians = [100, 50, 110, 70, 150, 200]
    contenders = bests + rest
    summary = {c.name: {"median_ms": m, "min_ms": 1, "max_ms": 999} for c, m in zip(contenders, medians, strict=True)}
    peaks = dict(
        zip((c.name for c in contenders), (10_000_000, 6, 20_000_000, None, 9_000_000, 40_000_000), strict=True)
    )
    figures = ratios(contenders, summary, peaks)
    group = figures[f"group {BEST} float32"]
    assert group["peak_mb"] == 20
    assert group["to_batch"] == {"time": 1.1, "memory": 2.0}
    assert group["to_pytorchvideo"] == {"time": 0.55, "memory": 0.5}
    low = figures[f"group {BEST} bfloat16"]
    assert low["to_batch"] == {"time": 1.4, "memory": None}
    assert low["to_pytorchvideo"] == {"time": 0.35, "memory": None}
    again = figures[f"group {BEST} float32 checkpointed"]
    assert again["to_plain"] == {"time": pytest.approx(150 / 110), "memory": 0.45}
    assert figures["pytorchvideo contiguous float32"]["to_batch"] == {"time": None, "memory": None}
    found = {t["what"]: (t["value"], t["met"]) for t in check_targets(figures)}
    assert found == {
        "group / batch, float32": (1.1, False),
        "group / batch, bfloat16": (1.4, False),
        "group float32 / pytorchvideo unchanged": (0.55, True),
        "group bfloat16 / pytorchvideo unchanged": (0.35, True),
        "checkpointing, memory": (0.45, True),
        "checkpointing, time": (pytest.approx(150 / 110), False),
    }


def test_on_cuda_pytorchvideos_net_unchanged_computes_in_tf32():
    theirs = [Contender("pytorchvideo", "contiguous", p) for p in ("float32", "tf32")]
    ours = Contender("group", BEST, "bfloat16")
    medians = dict(zip([ours, *theirs], (10, 90, 30), strict=True))
    summary = {c.name: {"median_ms": m, "min_ms": 1, "max_ms": 999} for c, m in medians.items()}
    figures = ratios(list(medians), summary, {})
    assert figures[ours.name]["to_pytorchvideo"]["time"] == pytest.approx(1 / 3)
    found = {t["what"]: t["met"] for t in check_targets(figures, train.CUDA_TARGETS)}
    assert found["group bfloat16 / pytorchvideo unchanged"] and found["group / batch, tf32"] is None


def test_targets_that_were_not_measured():
    assert {(t["value"], t["met"]) for t in check_targets({})} == {(None, None)}


class TestContenders:
    def test_all_of_them(self):
        found, notes = list_contenders(TINY, ["batch", "group"], ["contiguous", BEST], ["bfloat16"], compiled=True)
        assert [c.name for c in found] == [
            "batch contiguous bfloat16",
            f"batch {BEST} bfloat16",
            "group contiguous bfloat16",
            f"group {BEST} bfloat16",
            f"batch {BEST} bfloat16 compiled",
            f"group {BEST} bfloat16 compiled",
            f"group {BEST} bfloat16 checkpointed",
            "pytorchvideo contiguous bfloat16",
            f"pytorchvideo {BEST} bfloat16",
        ]
        assert notes == []

    def test_without_pytorchvideos_layout(self):
        setup = replace(TINY, layout="nonlocal")
        found, notes = list_contenders(setup, ["layer"], [BEST], ["float32"], compiled=False)
        assert [c.name for c in found] == [f"layer {BEST} float32", f"layer {BEST} float32 checkpointed"]
        assert notes == ["pytorchvideo was not measured: its net has the layout 'slowfast' only"]

    def test_pytorchvideos_net_is_the_same_network(self):
        ours, theirs = (build(Contender(n, "contiguous", "float32"), TINY) for n in ("batch", "pytorchvideo"))
        shapes = [sorted(tuple(p.shape) for p in net.parameters()) for net in (ours, theirs)]
        assert shapes[0] == shapes[1]
        maps = []
        for net in (ours, theirs):
            seen = []
            for stage in net.blocks[:-1]:
                stage.register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(tuple(y.shape)))
            assert net(torch.randn(2, 3, 8, 32, 32)).shape == (2, 400)
            maps.append(seen)
        assert maps[0] == maps[1]


class TestStep:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("memory_format", ["contiguous", BEST])
    def test_it_trains_and_leaves_no_gradients(self, precision, memory_format):
        torch.manual_seed(0)
        contender = Contender("group", memory_format, precision)
        net = build(contender, TINY)
        dtypes = set()
        net.blocks[0].norm.register_forward_hook(
            lambda _m, _i, y: dtypes.add((y.dtype, y.is_contiguous(memory_format=train_step.FORMATS[memory_format])))
        )
        before = [p.detach().clone() for p in net.parameters()]
        make_step(net, contender, TINY)()
        assert dtypes == {(getattr(torch, precision), True)}
        assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert all(p.grad is None for p in net.parameters())

    @pytest.mark.parametrize(("precision", "kind"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", None)])
    def test_float32_products_are_as_named_and_as_before_afterwards(self, precision, kind):
        """torch computes convolutions in TF32 on CUDA unless told otherwise: float32 would be measured as that."""

        def now():
            return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

        before = now()
        assert before[0] == "tf32"
        with train_step.float32_products(Contender("group", BEST, precision), replace(TINY, device="cuda")):
            assert now() == (before if kind is None else (kind, kind))
        with train_step.float32_products(Contender("group", BEST, precision), TINY):
            assert now() == before
        assert now() == before

    def test_checkpointing_is_on_in_its_turns_alone(self):
        plain, again = (Contender("group", BEST, "float32", checkpointed=on) for on in (False, True))
        net, seen = build(plain, TINY), []
        turns = [train._in_turn(net, c, TINY) for c in (plain, again, plain)]
        net.register_forward_pre_hook(lambda *_: seen.append(net.activation_checkpointing))
        for turn in turns:
            turn(0)
        assert seen == [False, True, False]


class TestCompiled:
    def test_its_first_step_is_apart(self, monkeypatch):
        compiled = []
        monkeypatch.setattr(nn.Module, "compile", lambda net: compiled.append(net))
        result = bench_train(
            TINY,
            norms=["batch", "group"],
            formats=["contiguous"],
            precisions=["float32"],
            compiled=True,
            memory=False,
            rounds=1,
        )
        assert len(compiled) == 2
        found = result["contenders"]
        group, batch = (found[f"{norm} {BEST} float32 compiled"] for norm in ("group", "batch"))
        assert group["compile_seconds"] > 0
        assert group["to_batch"]["time"] == group["median_ms"] / batch["median_ms"]
        assert "compiled in" in format_page(result)

    def test_a_compiler_that_is_missing_has_a_note(self, monkeypatch):
        def refuse(net):
            net.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))

        monkeypatch.setattr(nn.Module, "compile", refuse)
        contenders = [Contender("group", BEST, "float32", compiled=on) for on in (False, True)]
        seconds, compile_seconds, refused = train._measure(contenders, TINY, 1)
        assert list(seconds) == [f"group {BEST} float32"]
        assert compile_seconds == {}
        assert refused == {f"group {BEST} float32 compiled": "no compiler"}


class TestMemory:
    @pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="/proc tells the highest memory")
    def test_what_a_step_takes_is_seen(self, monkeypatch, capsys):
        taken = 300_000_000

        def make_step(net, contender, setup):
            return lambda: torch.ones(taken, dtype=torch.uint8)[0].item()

        monkeypatch.setattr(train_step, "make_step", make_step)
        request = {
            "contender": {"net": "group", "memory_format": BEST, "precision": "float32"},
            "setup": asdict(replace(TINY, num_clips=1)),
            "num_threads": torch.get_num_threads(),
        }
        # What earlier tests left to be used again may go back to the system at any time, and would be missed then.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        train_step.main([json.dumps(request)])
        # The net of width 4 is small beside it.
        assert json.loads(capsys.readouterr().out) == pytest.approx(taken, abs=50_000_000)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the highest memory")
    def test_in_a_process_of_its_own(self):
        contender = Contender("group", BEST, "float32")
        weights = 4 * sum(p.numel() for p in build(contender, TINY).parameters())
        assert peak_bytes(contender, TINY) > 2 * weights

    def test_a_process_that_fails_has_no_figure(self, monkeypatch):
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        assert peak_bytes(Contender("group", BEST, "float32"), TINY) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norms": ["bath"]}, "norm must be one of"),
        ({"formats": ["nhwc"]}, r"formats must be among .*, got \['nhwc'\]"),
        ({"precisions": ["int8"]}, r"precisions must be among .*, got \['int8'\]"),
        ({"precisions": ["tf32"]}, r"precisions must be among \['bfloat16', 'float32'\], got \['tf32'\]"),
        ({"setup": replace(TINY, frames=4, layout="nonlocal")}, "frames and size must be at least 8 and 5"),
        ({"setup": replace(TINY, layout="none")}, "layout must be one of"),
        ({"setup": replace(TINY, device="nowhere")}, "nowhere"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bench_train(**{"setup": TINY, "rounds": 1, **arguments})


def test_the_device_of_a_setup():
    assert replace(TINY, device="auto").device == ("cuda" if torch.cuda.is_available() else "cpu")
