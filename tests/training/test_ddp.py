"""Several processes take the step of one; what DDP is told to do for speed changes nothing."""

import os
import warnings

import pytest
import torch
from gradients import Gradients, batches, difference
from lightning import Trainer
from runs import play_together
from small import still_module
from torch.utils.data import DataLoader

from video_gn.errors import ConfigError
from video_gn.training.ddp import DDPConfig, SteadyDDP

PROCESSES, CLIPS, STEPS = 4, 2, 3
WHOLE = PROCESSES * CLIPS
PLAIN = {"static_graph": False, "gradient_as_bucket_view": False}
# Name: what differs from Group Norm, all that is on by default, float64.
CASES = {
    "default": {},
    "without static graph and bucket views": {"strategy": PLAIN},
    "checkpointed": {"activation_checkpointing": True},
    "frozen": {"frozen_stages": 2},
    "accumulated": {"accumulate": 2},
    "accumulated and checkpointed": {"accumulate": 2, "activation_checkpointing": True},
    "bfloat16": {"dtype": torch.float32, "strategy": {"compression": "bf16"}},
    "float32": {"dtype": torch.float32},
    "batch norm": {"norm": "batch"},
    "sync batch norm": {"norm": "sync_batch"},
    "sync batch norm, checkpointed": {"norm": "sync_batch", "activation_checkpointing": True},
}
BATCH_NORM = [name for name in CASES if "batch norm" in name]


def steps_of(
    *,
    norm="group",
    dtype=torch.float64,
    accumulate=1,
    frozen_stages=0,
    activation_checkpointing=False,
    strategy=None,
    processes=1,
    rank=0,
):
    """What each optimizer step of an epoch would use, of one of several processes or of one alone."""
    module = still_module(
        norm, dtype=dtype, frozen_stages=frozen_stages, activation_checkpointing=activation_checkpointing
    )
    kept = Trained()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy=SteadyDDP(**strategy or {}) if processes > 1 else "auto",
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
        callbacks=[kept],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Step s is of the clips from s * WHOLE on, whoever has them: in parts, one after another and side by side.
    mine = batches(STEPS * WHOLE, WHOLE // processes // accumulate)[rank::processes]
    trainer.fit(module, DataLoader(mine, batch_size=None, shuffle=False))
    return kept.steps, kept.strides


class Trained(Gradients):
    """Gradients of what is trained, and whether each has its parameter's strides."""

    def __init__(self):
        super().__init__()
        self.strides = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = [p for p in pl_module.parameters() if p.requires_grad]
        self.steps.append(torch.cat([p.grad.flatten() for p in found]))
        self.strides.append(all(p.grad.stride() == p.stride() for p in found))


def play():
    """All cases in one process."""
    rank = int(os.environ["LOCAL_RANK"])
    found, told = {}, []
    for name, case in CASES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found[name] = steps_of(**case, processes=PROCESSES, rank=rank)
        told += [str(w.message) for w in caught if "strides" in str(w.message)]
    return found, told


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return play_together(play, PROCESSES, tmp_path_factory.mktemp("played"))


@pytest.fixture(scope="module")
def alone():
    """One process with whole batches, plainly; some of the parameters for the case in which others are frozen."""
    steps, _ = steps_of()
    frozen, _ = steps_of(frozen_stages=2)
    return {"frozen": frozen, None: steps} | dict.fromkeys(BATCH_NORM, steps_of(norm="batch")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*CASES} - {"bfloat16", "float32", "batch norm"}))
def test_four_processes_take_the_step_of_one(played, alone, name):
    """4 x 2 clips against 1 x 8, over steps enough for DDP to have laid out its buckets anew."""
    wanted = alone.get(name, alone[None])
    assert len(wanted) == STEPS
    assert all(part.abs().max() > 0 for step in wanted for part in step.split(step.numel() // 50))
    for found, _ in played:
        assert len(found[name][0]) == STEPS
        for got, step in zip(found[name][0], wanted, strict=True):
            assert difference(got, step) < 1e-10


@pytest.mark.slow
def test_each_process_of_batch_norm_has_statistics_of_its_own(played, alone):
    steps = played[0][0]["batch norm"][0]
    assert all(difference(got, step) > 1e-2 for got, step in zip(steps, alone["batch norm"], strict=True))


@pytest.mark.slow
def test_gradients_lie_as_their_parameters(played):
    """DDP warns of others, and then copies with strides."""
    for found, told in played:
        assert told == []
        assert all(all(strides) for _, strides in found.values())


@pytest.mark.slow
def test_bfloat16_rounds_what_is_sent(played):
    """8 bits: 2^-9 of each value, once in each process and twice in two additions of a ring, and once at the end."""
    for found, _ in played:
        for got, plain in zip(found["bfloat16"][0], found["float32"][0], strict=True):
            assert 1e-5 < difference(got, plain) < 2**-7
            assert torch.equal(got, got.bfloat16().float())
    for got, other in zip(played[0][0]["bfloat16"][0], played[3][0]["bfloat16"][0], strict=True):
        assert torch.equal(got, other)


def test_compression_needs_processes():
    with pytest.raises(ValueError, match=r"ddp\.compression must be one of \['bf16', 'none'\], got 'int8'"):
        DDPConfig("int8")
    DDPConfig().check(object())
    DDPConfig("bf16").check(SteadyDDP())
    with pytest.raises(ConfigError, match=r"must be none unless several processes .* got 'bf16' with object"):
        DDPConfig("bf16").check(object())


def test_compression_needs_a_backend_that_adds_up_bfloat16(monkeypatch):
    strategy = SteadyDDP(compression="bf16")
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "mpi")
    with pytest.raises(ConfigError, match=r"unless processes talk through gloo or nccl, got 'bf16' with mpi"):
        strategy._register_ddp_hooks()
