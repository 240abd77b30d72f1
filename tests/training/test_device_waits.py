"""What a training step asks of a GPU, watched on a device that computes nothing (torch's meta device), and on a GPU."""

import warnings

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from small import data_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from video_gn.models import i3d
from video_gn.training.guard import NonFiniteGuard
from video_gn.training.mixing import Mixing
from video_gn.training.module import VideoClassifier
from video_gn.training.optimizer import OptimizerConfig


class Crossings(TorchDispatchMode):
    """Shapes of the tensors that go to the device and of those that are read back from it, as zeros."""

    def __init__(self):
        super().__init__()
        self.sent, self.read = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        if "meta" in devices and func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(())
            return 0
        if "meta" in devices and func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu":
            self.read.append(tuple(args[0].shape))
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        output = func(*args, **kwargs)
        devices |= {t.device.type for t in tree_leaves(output) if isinstance(t, torch.Tensor)}
        if {"cpu", "meta"} <= devices:
            self.sent.append(tuple(args[0].shape))
        return output


class Accelerator(CPUAccelerator):
    def setup_device(self, device):
        """Lightning's would refuse other devices than a CPU."""


def train(module, videos, tmp_path, **settings):
    """Three steps; where each ends, its gradients are reset."""
    trainer = Trainer(
        max_steps=3,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[NonFiniteGuard()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, data_module(videos))


def classifier():
    net = i3d(50, width=4, num_groups=2, num_classes=3, dropout=0.5, drop_path=0.1)
    optimizer = OptimizerConfig("adamw", reference_batch_size=None)
    return VideoClassifier(net, optimizer=optimizer, mixing=Mixing(mixup_alpha=0.4, label_smoothing=0.1))


def test_a_step_sends_the_batch_alone_and_waits_once_inside(tiny_videos, tmp_path):
    """With each other crossing the host would wait, and the device then for the host."""
    module = classifier()
    crossings, steps, logged, log = Crossings(), [], {}, module.log
    module.log = lambda name, value, **words: (logged.update({name: value}), log(name, value, **words))
    module.on_before_zero_grad = lambda optimizer: steps.append((len(crossings.sent), len(crossings.read)))
    with crossings:
        strategy = SingleDeviceStrategy(torch.device("meta"), accelerator=Accelerator())
        train(module, tiny_videos, tmp_path, strategy=strategy)
    (_, _), (sent, read), (sent_end, read_end) = steps
    assert crossings.sent[sent:sent_end] == [(4, 1, 8, 3, 32, 32), (4,), (4,)]
    # The guard's flags of gradients and loss, before the optimizer; the loss for a progress bar, after the step.
    assert crossings.read[read:read_end] == [(2,), ()]
    # Of a number Lightning makes a tensor on the device, which is a copy that waits; no mode sees it on this device.
    assert logged["lr"].device.type == "cpu" and logged["train/loss"].device.type == "meta"


@pytest.mark.needs_cuda
def test_a_gpu_is_waited_for_as_often(tiny_videos, tmp_path):
    """torch warns of each call that waits."""
    module, steps = classifier(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.on_before_zero_grad = lambda optimizer: steps.append(len(caught))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train(module, tiny_videos, tmp_path, accelerator="gpu", devices=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    messages = [str(w.message) for w in caught[steps[1] : steps[2]]]
    assert sum("synchronizing" in message for message in messages) <= 2, messages
