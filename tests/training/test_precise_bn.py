import multiprocessing
import os
import random
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from runs import TINY
from small import assert_same, data_module
from torch import distributed, nn

from video_gn.data.configs import AugmentConfig
from video_gn.errors import ConfigError
from video_gn.evaluation.scores import normalize_clips
from video_gn.evaluation.writer import EvaluationWriter
from video_gn.models import i3d
from video_gn.models.norms import is_norm
from video_gn.run.checkpoints import AtomicCheckpointIO, RunCheckpoint
from video_gn.training.averaging import AveragingConfig
from video_gn.training.module import VideoClassifier
from video_gn.training.optimizer import OptimizerConfig
from video_gn.training.precise_bn import Moments, PreciseBN, batch_norms, estimate_statistics
from video_gn.training.schedule import ScheduleConfig


def tiny(norm="batch", seed=0):
    torch.manual_seed(seed)
    net = i3d(50, width=4, num_classes=3, norm=norm, **({"num_groups": 2} if norm == "group" else {}))
    for module in net.modules():  # with the last norms at 0 no branch would count
        if is_norm(module):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


def clips(num_batches, *, seed=0, num=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((num, 3, 8, 32, 32), generator=generator) + i for i in range(num_batches)]


def naive(net, batches):
    """float64, from all inputs of all norms, kept: {name: (mean, variance with n - 1, with n)}."""
    kept = {name: [] for name in batch_norms(net)}
    handles = [
        norm.register_forward_pre_hook(lambda m, x, name=name: kept[name].append(x[0].detach().double()))
        for name, norm in batch_norms(net).items()
    ]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for x in batches:
            net(x)
            net.load_state_dict(before)  # every batch meets the same running averages
    for handle in handles:
        handle.remove()
    found = {}
    for name, inputs in kept.items():
        flat = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], dim=1)
        found[name] = flat.mean(1), flat.var(1, correction=1), flat.var(1, correction=0)
    return found


def assert_is_naive(found, wanted, *, norm="batch", prefix=""):
    for name, (mean, unbiased, biased) in wanted.items():
        var = biased if norm == "batch_renorm" else unbiased
        scale = unbiased.sqrt().max()
        # float32 forwards are the same; each batch's statistics are float32, their pooling float64.
        torch.testing.assert_close(
            found[f"{prefix}{name}.running_mean"].double(), mean, rtol=1e-5, atol=1e-5 * float(scale)
        )
        torch.testing.assert_close(found[f"{prefix}{name}.running_var"].double(), var, rtol=1e-5, atol=0)


# ---- moments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "dtype"), [(0.0, torch.float32), (1e4, torch.float32), (3.0, torch.bfloat16)])
def test_moments_of_parts_are_those_of_the_whole(offset, dtype):
    generator = torch.Generator().manual_seed(0)
    parts = [
        (torch.randn((n, 5, t, 3, 2), generator=generator) + offset + t).to(dtype)
        for n, t in ((1, 1), (4, 2), (2, 7), (3, 3))
    ]
    whole = torch.cat([x.transpose(0, 1).flatten(1) for x in parts], dim=1).double()
    one, two = Moments(), Moments()
    for x in parts[:2]:
        one.add(x)
    for x in (*parts[2:], torch.zeros((0, 5, 1, 3, 2))):
        two.add(x)
    one.merge(two.count, two.mean_C, two.squares_C)
    assert one.count == whole.shape[1]
    torch.testing.assert_close(one.mean_C, whole.mean(1), rtol=1e-6, atol=1e-6)
    # A batch's mean is float32, which holds 1e4 to 5e-4: 1e-3 of the spread, which is some units. A mean of squares
    # less the square of the mean would be off by 10.
    rtol = 1e-3 if offset == 1e4 else 1e-5
    torch.testing.assert_close(one.squares_C / one.count, whole.var(1, correction=0), rtol=rtol, atol=0)


# ---- the estimate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "batch_renorm"])
def test_the_estimate_is_of_all_inputs_of_every_norm(norm):
    net = tiny(norm).train()
    batches = [*clips(3), *clips(1, seed=1, num=2)]
    found = estimate_statistics(net, batches)
    wanted = naive(net, batches)
    assert len(wanted) == 53
    assert set(found) == {f"{name}.{kind}" for name in wanted for kind in ("running_mean", "running_var")}
    assert_is_naive(found, wanted, norm=norm)


def test_one_batch_gives_what_a_momentum_of_one_stores():
    net, other = tiny().train(), tiny().train()
    for module in batch_norms(other).values():
        module.momentum = 1.0
    batch = clips(1)[0]
    with torch.no_grad():
        other(batch)
    stored = other.state_dict()
    for name, value in estimate_statistics(net, [batch]).items():
        torch.testing.assert_close(value, stored[name], rtol=1e-5, atol=1e-6)


def test_torchs_own_norms_and_shared_ones():
    torch.manual_seed(0)
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(shared, nn.Linear(4, 4), nn.ReLU(), shared, nn.InstanceNorm1d(4, track_running_stats=True))
    batches = [torch.randn(6, 4), 3 * torch.randn(5, 4) + 1]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = estimate_statistics(net[:4], batches)
    wanted = naive(net[:4], batches)
    assert list(wanted) == ["0"], "a module that comes twice has one name"
    assert_is_naive(found, wanted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert list(batch_norms(net)) == ["0"]
    assert batch_norms(nn.BatchNorm1d(4, track_running_stats=False)) == {}


def test_the_net_is_left_alone_and_what_training_does_not_use_too():
    net = tiny().train()
    net.blocks[1].eval()  # a frozen stage
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = [module.training for module in net.modules()]
    found = estimate_statistics(net, clips(2))
    assert not any(name.startswith("blocks.1.") for name in found)
    assert any(name.startswith("blocks.0.") for name in found)
    assert [module.training for module in net.modules()] == state
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    frozen = tiny("frozen_batch").train()
    assert batch_norms(frozen) == {}
    assert estimate_statistics(frozen, clips(1)) == {}


def work(rank, path):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        found = estimate_statistics(tiny().train(), clips(4)[rank::2], world_size=2)
        torch.save(found, f"{path}/{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def test_two_processes_pool_what_one_sees(tmp_path):
    context = multiprocessing.get_context("fork")  # nothing to import again; forwards alone start no threads
    processes = [context.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = estimate_statistics(tiny().train(), clips(4))
    assert set(one) == set(two) == set(alone)
    for name, value in alone.items():
        assert torch.equal(one[name], two[name]), "every process has the same bits"
        torch.testing.assert_close(one[name], value, rtol=1e-6, atol=1e-7)  # merged in another order


# ---- in a run ------------------------------------------------------------------------------------------


class Trace(Callback):
    """Everything of a training that could move: clips, losses, random states; and what is validated with."""

    def __init__(self):
        self.lines = []
        self.validated = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        states = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        self.lines.append((trainer.global_step, batch.video_ids.tolist(), int(batch.frames_NKTCHW.long().sum())))
        self.lines.append(hash(str(states)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.lines.append(float(outputs["loss"]))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        state = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        self.validated[trainer.global_step] = state


def fit(videos, tmp_path, precise, *, norm="batch", averaging=None, ckpt_path=None, epochs=2, frozen=0, order=1):
    seed_everything(0)
    model = VideoClassifier(
        tiny(norm),
        optimizer=OptimizerConfig(reference_batch_size=None, lr=0.01, frozen_stages=frozen),
        schedule=ScheduleConfig(name="constant"),
    )
    trace = Trace()
    averages = [] if averaging is None else [averaging.build()]
    callbacks = [*averages, precise][::order] if precise is not None else averages
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
        callbacks=[EvaluationWriter(tmp_path), *callbacks, trace, RunCheckpoint(str(tmp_path), 1, keep_steps=20)],
    )
    trainer.fit(model, datamodule=data_module(videos), ckpt_path=ckpt_path)
    return model, trace


def load(path, step):
    return torch.load(path / f"step-{step:08d}.ckpt", weights_only=True)


def wanted_for(videos, state, step, *, norm, num_batches=2, flip=0.5):
    """The naive statistics of the weights in a state dict, over the clips of a step."""
    net = tiny(norm).to(memory_format=torch.channels_last_3d)
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")})
    module = data_module(videos, augment=AugmentConfig(short_side_px=(32, 36), crop_px=32, flip=flip))
    module.read("fit")
    mean, std = torch.full((3,), 0.45), torch.full((3,), 0.225)
    loader = module.extra_train_dataloader(stream=0, start=step, num_batches=num_batches)
    return naive(net.train(), [normalize_clips(batch.frames_NKTCHW.flatten(0, 1), mean, std) for batch in loader])


@pytest.fixture(scope="module")
def plain(tiny_videos, tmp_path_factory):
    """By kind: a run without estimates."""
    found = {}

    def of(norm):
        if norm not in found:
            path = tmp_path_factory.mktemp(norm)
            found[norm] = (path, *fit(tiny_videos, path, None, norm=norm))
        return found[norm]

    return of


@pytest.mark.parametrize("norm", [pytest.param("batch", marks=pytest.mark.slow), "batch_renorm"])
def test_training_is_bit_for_bit_that_without_estimates_and_goes_on_so(tiny_videos, tmp_path, plain, norm):
    plain_path, _, plain_trace = plain(norm)
    _, trace = fit(tiny_videos, tmp_path, PreciseBN(2), norm=norm)
    assert trace.lines == plain_trace.lines
    for step in range(1, 7):
        with_it, without = load(tmp_path, step), load(plain_path, step)
        own = with_it["running_statistics"]
        state = {**with_it["state_dict"], **{f"net.{name}": value for name, value in own.items()}}
        assert_same(state, dict(without["state_dict"]))
        assert_same(with_it["optimizer_states"], without["optimizer_states"])
    # Steps 2 (inside an epoch) and 3 (validated): the estimate is of the clips of that step.
    for step in (2, 3):
        content = load(tmp_path, step)
        assert_is_naive(
            content["state_dict"],
            wanted_for(
                tiny_videos,
                {**content["state_dict"], **{f"net.{n}": v for n, v in content["running_statistics"].items()}},
                step,
                norm=norm,
            ),
            norm=norm,
            prefix="net.",
        )
    saved = {name.removeprefix("net."): value for name, value in load(tmp_path, 3)["state_dict"].items()}
    assert_same(dict(trace.validated[3]), {name: saved[name] for name in trace.validated[3]})
    # A run that resumes inside an epoch ends as the whole one.
    resumed = tmp_path / "resumed"
    _, again = fit(tiny_videos, resumed, PreciseBN(2), norm=norm, ckpt_path=tmp_path / "step-00000002.ckpt")
    # Each step seeds its own random state; what was before the first one is another process's.
    assert [again.lines[0], *again.lines[2:]] == [trace.lines[6], *trace.lines[8:]]
    for step in (3, 6):
        for key in ("state_dict", "optimizer_states", "running_statistics"):
            assert_same(dict(enumerate([load(resumed, step)[key]])), dict(enumerate([load(tmp_path, step)[key]])))


@pytest.mark.parametrize("start_step", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_with_averaged_weights_the_estimate_is_of_those(tiny_videos, tmp_path, plain, start_step):
    averaging = AveragingConfig(kind="ema", decay=0.5, start_step=start_step)
    model, trace = fit(tiny_videos, tmp_path, PreciseBN(2), averaging=averaging)
    assert trace.lines == plain("batch")[2].lines
    for step in (2, 3, 6):
        content = load(tmp_path, step)
        same = torch.equal(
            content["state_dict"]["net.blocks.0.conv.weight"],
            content["current_model_state"]["net.blocks.0.conv.weight"],
        )
        assert same == (start_step > step)
        wanted = wanted_for(tiny_videos, content["state_dict"], step, norm="batch")
        assert_is_naive(content["state_dict"], wanted, prefix="net.")
        if step != 2:
            validated = {f"net.{name}": value for name, value in trace.validated[step].items()}
            assert_same(validated, {name: content["state_dict"][name] for name in validated})
    last = load(tmp_path, 6)["state_dict"]
    assert_same(dict(model.state_dict()), {name: last[name] for name in model.state_dict()})
    with pytest.raises(ValueError, match="PreciseBN must be listed after WeightAveraging"):
        fit(tiny_videos, tmp_path, PreciseBN(2), averaging=averaging, order=-1)


def test_without_checkpoints_of_steps_that_are_not_validated(tiny_videos, tmp_path, plain, monkeypatch):
    steps = []
    inner = PreciseBN._batches

    def counted(self, trainer, pl_module):
        steps.append(trainer.global_step)
        return inner(self, trainer, pl_module)

    monkeypatch.setattr(PreciseBN, "_batches", counted)
    fit(tiny_videos, tmp_path, PreciseBN(1, before_checkpoints=False), frozen=2)
    assert steps == [3, 6], "once for a validation and the save after it"
    assert "running_statistics" not in load(tmp_path, 2)
    content = load(tmp_path, 3)
    assert not any(name.startswith(("blocks.0.", "blocks.1.")) for name in content["running_statistics"])
    assert any(name.startswith("blocks.3.") for name in content["running_statistics"])
    steps.clear()
    fit(tiny_videos, tmp_path / "b", PreciseBN(1), epochs=1)
    assert steps == [1, 2, 3]
    steps.clear()
    fit(tiny_videos, tmp_path / "c", PreciseBN(0), epochs=1)
    assert steps == []


def test_what_a_run_must_have(tiny_videos, tmp_path):
    with pytest.raises(ValueError, match=r"precise_bn\.num_batches must be 0 \(off\) or above, got -1"):
        PreciseBN(-1)
    words = re.escape(
        "precise_bn.num_batches must be 0 for a network without Batch Norm, got 2. Set it to 0, or model.net"
    )
    for norm in ("group", "frozen_batch"):
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
        with pytest.raises(ConfigError, match=words):
            PreciseBN(2).setup(trainer, VideoClassifier(tiny(norm)), "fit")
        PreciseBN(2).setup(trainer, VideoClassifier(tiny(norm)), "test")
        PreciseBN(0).setup(trainer, VideoClassifier(tiny(norm)), "fit")
    with pytest.raises(ValueError, match="PreciseBN must have a VideoDataModule"):
        PreciseBN(2).setup(trainer, VideoClassifier(tiny()), "fit")


@pytest.mark.slow
def test_a_run_of_two_processes(tiny_videos, tmp_path):
    """What the command line saves are the statistics of both processes' clips: those of one with twice the batches."""
    words = [
        "fit", *TINY, "--model.net.norm=batch", "--model.net.num_groups=null", f"--data.train={tiny_videos}",
        f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1", "--trainer.devices=2", "--trainer.strategy=ddp", "--precise_bn.num_batches=2",
    ]  # fmt: skip
    script = Path(sys.executable).with_name("video-gn")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([script, *words], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    state = {**content["state_dict"], **{f"net.{n}": v for n, v in content["running_statistics"].items()}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run had: with another number its activations are others in their last bits
    try:
        wanted = wanted_for(tiny_videos, state, 2, norm="batch", num_batches=4, flip=0.0)
    finally:
        torch.set_num_threads(threads)
    assert_is_naive(content["state_dict"], wanted, prefix="net.")
    assert "statistics of 53 norms over 2 batches of 2 process(es)" in done.stderr + done.stdout
