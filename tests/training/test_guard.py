import contextlib
import multiprocessing
import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from small import data_module
from torch import distributed, nn

from video_gn.clips import ClipBatch
from video_gn.data.configs import AugmentConfig
from video_gn.errors import RunError
from video_gn.evaluation.writer import EvaluationWriter
from video_gn.models import i3d
from video_gn.models.norms import is_norm
from video_gn.run.checkpoints import AtomicCheckpointIO, RunCheckpoint
from video_gn.training.guard import NonFiniteGuard, first_bad_module
from video_gn.training.module import VideoClassifier
from video_gn.training.optimizer import OptimizerConfig
from video_gn.training.schedule import ScheduleConfig

BAD = "blocks.3.res_blocks.0.branch2.conv_b"


class Poison(Callback):
    """Spoils the output of a module, or its gradient, at some steps; notes what a step leaves of the state."""

    def __init__(self, steps, *, what="output", times=10**6, batches=None, name=BAD):
        self.steps, self.what, self.times, self.batches, self.name = steps, what, times, batches, name
        self.batch_idx = None
        self.batches_seen, self.states, self.rates = {}, {}, {}

    def on_fit_start(self, trainer, pl_module):
        def hook(module, inputs, output):
            here = self.batches is None or self.batch_idx in self.batches
            if trainer.training and trainer.global_step in self.steps and self.times and here:
                self.times -= 1
                if self.what == "output":
                    return output * float("nan")
                if output.requires_grad:
                    output.register_hook(lambda grad: grad * float(self.what))
            return None

        dict(pl_module.net.named_modules())[self.name].register_forward_hook(hook)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch_idx = batch_idx
        records = trainer.datamodule.manifests["train"].records
        self.batches_seen[batch_idx] = [records[i].path for i in batch.video_ids.tolist()]
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(trainer, pl_module)

    def note(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        momenta = [optimizer.state[p].get("momentum_buffer") for g in optimizer.param_groups for p in g["params"]]
        self.states[trainer.global_step] = [
            *(value.clone() for value in pl_module.state_dict().values()),
            *(m.clone() for m in momenta if m is not None),
        ]
        self.rates[trainer.global_step] = optimizer.param_groups[0]["lr"]


def model(norm="batch", **schedule):
    seed_everything(0)
    groups = {"num_groups": 2} if norm == "group" else {}
    net = i3d(50, width=4, num_classes=3, norm=norm, **groups)
    for module in net.modules():
        if is_norm(module):
            nn.init.ones_(module.weight)
    return VideoClassifier(
        net,
        optimizer=OptimizerConfig(reference_batch_size=None, lr=1e-4),
        schedule=ScheduleConfig(**(schedule or {"name": "constant"})),
    )


def fit(videos, tmp_path, guard, *callbacks, module=None, ckpt_path=None, **changes):
    settings = {"max_epochs": 1, "limit_train_batches": 4, "plugins": [AtomicCheckpointIO()], **changes}
    trainer = Trainer(
        accelerator="cpu",
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=[EvaluationWriter(tmp_path), guard, *callbacks, RunCheckpoint(str(tmp_path), 1, keep_steps=9)],
        **settings,
    )
    data = data_module(videos, augment=AugmentConfig(short_side_px=(32, 36), crop_px=32, flip=0.0), batch_size=3)
    module = module or model()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer, module


def is_finite(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(v.isfinite().all()) for v in state.values())


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tiny_videos, tmp_path):
    poison, guard = Poison({2}), NonFiniteGuard()
    with pytest.raises(RunError) as found:
        fit(tiny_videos, tmp_path, guard, poison)
    text = str(found.value)
    names = ", ".join(poison.batches_seen[2])
    assert text.startswith(
        "step 3 (epoch 1, learning rate 0.0001): the loss is not finite; the first output that is not is of "
        f"net.{BAD}. Since the last step: rank 0, batch 2, loss nan: {names}. The step was not taken."
    )
    assert "guard.action" in text
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["last.ckpt", "step-00000001.ckpt", "step-00000002.ckpt"]
    assert is_finite(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_is_named(tiny_videos, tmp_path, value):
    poison = Poison({1}, what=value)
    with pytest.raises(RunError, match=r"step 2 .*the gradients are not finite, the first one") as found:
        fit(tiny_videos, tmp_path, NonFiniteGuard(), poison, module=model("group"))
    # The hook spoils the gradient of conv_b's output: norm_b, which comes later, is still right.
    assert f"on the way back being that of net.{BAD}.weight." in str(found.value)
    assert re.search(r"batch 1, loss \d\.\d+: ", str(found.value))


def test_all_batches_of_an_accumulated_step_are_named(tiny_videos, tmp_path):
    poison = Poison({1}, batches={3})
    with pytest.raises(RunError, match=r"step 2 \(") as found:
        fit(tiny_videos, tmp_path, NonFiniteGuard(), poison, accumulate_grad_batches=2, limit_train_batches=6)
    text = str(found.value)
    for batch_idx, loss in ((2, r"[01]\.\d+"), (3, "nan")):
        names = re.escape(", ".join(poison.batches_seen[batch_idx]))
        assert re.search(rf"rank 0, batch {batch_idx}, loss {loss}: {names}", text), text
    assert f"of net.{BAD}." in text
    assert "batch 1," not in text


def test_a_loss_is_told_as_it_is_in_a_short_window(tiny_videos, tmp_path):
    with pytest.raises(RunError) as found:
        fit(tiny_videos, tmp_path, NonFiniteGuard(), Poison({1}, what="nan"), accumulate_grad_batches=3, module=model())
    loss = float(re.search(r"batch 3, loss (\S+):", str(found.value)).group(1))
    assert 0.3 < loss < 3, "ln 3 = 1.1, neither three times that nor a third"


def test_what_does_not_happen_again_is_told_so(tiny_videos, tmp_path):
    with pytest.raises(RunError, match="the loss is not finite, while every module's output is when the batch is run"):
        fit(tiny_videos, tmp_path, NonFiniteGuard(), Poison({0}, times=1))


def test_a_weight_that_is_not_finite_is_named(tiny_videos, tmp_path):
    module = model()
    with torch.no_grad():
        module.net.blocks[1].res_blocks[1].branch2.conv_a.weight[0] = float("inf")
    with pytest.raises(RunError, match=r"blocks\.1\.res_blocks\.1\.branch2\.conv_a \(its weight is not finite\)"):
        fit(tiny_videos, tmp_path, NonFiniteGuard(), module=module)
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize(("norm", "what"), [("batch", "output"), pytest.param("group", "inf", marks=pytest.mark.slow)])
def test_a_skipped_step_leaves_everything_as_it_was(tiny_videos, tmp_path, norm, what, caplog):
    poison, guard = Poison({1, 2}, what=what), NonFiniteGuard("skip")
    schedule = {"name": "cosine", "warmup": 0}
    fit(tiny_videos, tmp_path, guard, poison, module=model(norm, **schedule))
    for before, after in ((1, 2), (2, 3)):
        for a, b in zip(poison.states[before], poison.states[after], strict=True):
            assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(poison.states[3], poison.states[4], strict=True))
    assert all(bool(v.isfinite().all()) for v in poison.states[4])
    assert len({poison.rates[step] for step in range(4)}) == 4, "the schedule advances"
    assert guard.num_skipped == 2
    assert caplog.text.count("The step is skipped; 1 so far") == 1
    assert "The step is skipped; 2 so far" in caplog.text
    assert is_finite(tmp_path / "last.ckpt")
    # A resumed run counts on.
    again = NonFiniteGuard("skip", max_skipped=2)
    with pytest.raises(RunError, match=r"3 steps had to be skipped, more than guard\.max_skipped = 2 allows"):
        fit(
            tiny_videos, tmp_path, again, Poison({4}, what=what), module=model(norm, **schedule), max_epochs=2,
            ckpt_path=tmp_path / "step-00000004.ckpt",
        )  # fmt: skip


def test_no_step_may_be_skipped(tiny_videos, tmp_path):
    with pytest.raises(RunError, match=r"1 step had to be skipped, more than guard\.max_skipped = 0 allows"):
        fit(tiny_videos, tmp_path, NonFiniteGuard("skip", 0), Poison({0}))


def test_looking_again_changes_nothing(tiny_videos, tmp_path):
    """A run in which every batch is run again gives the same weights, statistics and random numbers."""

    class Looks(Callback):
        found = ()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            state = torch.get_rng_state()
            grads = [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
            with torch.no_grad():
                self.found += (first_bad_module(trainer, pl_module, kept(trainer)),)
            assert torch.equal(torch.get_rng_state(), state)
            assert all(torch.equal(p.grad, g) for p, g in zip(pl_module.parameters(), grads, strict=True))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batch = (batch_idx, batch)

    looks = Looks()

    def kept(trainer):
        batch_idx, batch = looks.batch
        return SimpleNamespace(batch=batch, batch_idx=batch_idx)

    states = []
    for callbacks in ((), (looks,)):
        trainer, module = fit(tiny_videos, tmp_path, NonFiniteGuard(), *callbacks, limit_train_batches=2)
        states.append((module.state_dict(), float(trainer.callback_metrics["train/loss"])))
    assert looks.found == (None, None)
    assert states[0][1] == states[1][1]
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name


def test_a_checkpoint_of_weights_that_are_not_finite_is_refused(tiny_videos, tmp_path):
    class Breaks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                with torch.no_grad():
                    pl_module.net.blocks[0].norm.running_var[1] = float("inf")

    with pytest.raises(RunError, match=r"step 2: net\.blocks\.0\.norm\.running_var must be finite in a checkpoint"):
        fit(tiny_videos, tmp_path, NonFiniteGuard(), Breaks())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    assert is_finite(tmp_path / "last.ckpt")


@pytest.mark.parametrize("key", ["current_model_state", "running_statistics", "averaged_running_statistics"])
def test_so_is_one_of_what_stands_beside_the_weights(key):
    checkpoint = {"state_dict": {"a": torch.ones(3)}, key: {"norm.running_var": torch.tensor([1.0, float("nan")])}}
    trainer, module = SimpleNamespace(world_size=1, global_step=7), SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(RunError, match=f"step 7: {key}: norm.running_var must be finite in a checkpoint"):
        NonFiniteGuard().on_save_checkpoint(trainer, module, checkpoint)
    checkpoint[key]["norm.running_var"][1] = 0.0
    NonFiniteGuard().on_save_checkpoint(trainer, module, checkpoint)


def scaled(**settings):
    scaler = torch.amp.GradScaler(device="cpu", **settings)
    return {"plugins": [AtomicCheckpointIO(), MixedPrecision("16-mixed", "cpu", scaler)]}


def test_with_a_gradient_scaler_only_the_loss_counts(tiny_videos, tmp_path):
    # float16 gradients overflow at such a scale: the scaler leaves those steps out and halves it.
    plugins = scaled(init_scale=2.0**40, backoff_factor=2.0**-16)
    _, module = fit(tiny_videos, tmp_path, NonFiniteGuard(), limit_train_batches=3, module=model("group"), **plugins)
    assert all(bool(v.isfinite().all()) for v in module.state_dict().values())
    with pytest.raises(RunError, match=r"the loss is not finite.*loss nan: "):
        fit(tiny_videos, tmp_path, NonFiniteGuard(), Poison({0}), module=model("group"), **scaled(init_scale=4.0))


def test_large_finite_gradients_are_no_fault():
    """1e30 is finite, its square in float32 is not."""
    found = meet(world_size=1, rank=0, loss=1.0, grad=1e30)
    assert found == ""


class Task(nn.Module):
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def on_train_batch_start(self, batch, batch_idx):
        pass

    def training_step(self, batch, batch_idx):
        return self.weight.sum()


def stub(**changes):
    plugin = SimpleNamespace(train_step_context=contextlib.nullcontext)
    return SimpleNamespace(**{"precision_plugin": plugin, "world_size": 1, "global_rank": 0, **changes})


def test_a_compiled_net_is_looked_into():
    class Net(nn.Module):
        def forward(self, x):
            return x / 0

    task = Task()
    task.net = nn.Sequential(nn.Linear(2, 2), Net(), nn.ReLU())
    task.net.compile()
    task.training_step = lambda batch, batch_idx: task.net(torch.ones(1, 2)).sum()
    assert first_bad_module(stub(), task, SimpleNamespace(batch=None, batch_idx=0)) == "net.1"


def meet(world_size, rank, loss, grad):
    """What the guard says of one step with such a loss and (already averaged) gradient; "" where it is content."""
    task, guard = Task(), NonFiniteGuard()
    task.weight.grad = torch.tensor([grad, 1.0])
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5)
    records = [SimpleNamespace(path=f"{i}.mp4") for i in range(9)]
    trainer = stub(
        world_size=world_size, global_rank=rank, global_step=4, current_epoch=1,
        datamodule=SimpleNamespace(manifests={"train": SimpleNamespace(records=records)}),
    )  # fmt: skip
    ids = torch.tensor([rank, rank + 5])
    batch = ClipBatch(torch.zeros((2, 1, 1, 3, 1, 1), dtype=torch.uint8), ids, ids)
    guard.on_train_batch_start(trainer, task, batch, 7)
    guard.on_before_backward(trainer, task, torch.tensor(loss))
    try:
        guard.on_before_optimizer_step(trainer, task, optimizer)
    except RunError as error:
        return str(error)
    return ""


def work(rank, path):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        bad = float("inf") if rank else 1.5
        said = [meet(2, rank, bad, 1.0), meet(2, rank, 1.5, 1.0), meet(2, rank, 1.5, float("nan"))]
        torch.save(said, f"{path}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_all_ranks_decide_alike(tmp_path):
    context = multiprocessing.get_context("fork")  # nothing to import again
    processes = [context.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one == two
    assert one[1] == ""
    lines = "rank 0, batch 7, loss 1.5: 0.mp4, 5.mp4; rank 1, batch 7, loss {}: 1.mp4, 6.mp4."
    assert one[0].startswith("step 5 (epoch 2, learning rate 0.5): the loss is not finite, while every")
    assert lines.format("inf") in one[0]
    assert "the first one on the way back being that of weight" in one[2]
    assert lines.format("1.5") in one[2]


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"guard\.action must be one of \['skip', 'stop'\], got 'warn'"):
        NonFiniteGuard("warn")
    with pytest.raises(ValueError, match=r"guard\.max_skipped must be 0 or above, got -1"):
        NonFiniteGuard("skip", -1)
