"""With Group Norm, accumulated micro-batches give the gradients of the whole batch; with Batch Norm they do not."""

import sys

import pytest
import torch
from gradients import Gradients, batches, difference
from lightning import Trainer
from small import still_module
from torch.utils.data import DataLoader

from video_gn.models import i3d


def gradients(norm, num_clips, size, accumulate, *, dtype=torch.float64):
    """Of each optimizer step of an epoch, from the Lightning trainer itself; the learning rate changes nothing."""
    module = still_module(norm, dtype=dtype)
    kept = Gradients()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        callbacks=[kept],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches(num_clips, size), batch_size=None, shuffle=False))
    return kept.steps


def test_group_norm_accumulates_exactly(capsys):
    """8 micro-batches of 1 against a batch of 8, the paper's two ways to the same step."""
    (accumulated,), (whole,) = gradients("group", 8, 1, 8), gradients("group", 8, 8, 1)
    assert all(part.abs().max() > 0 for part in whole.split(whole.numel() // 50)), "a comparison of zeros"
    assert difference(accumulated, whole) < 1e-10
    # In float32 sums of another order flip ReLUs: printed, for it is a property of the machine.
    single = [gradients("group", 8, n, 8 // n, dtype=torch.float32)[0] for n in (1, 8)]
    with capsys.disabled():
        sys.stdout.write(f"\n  GN, 8 x 1 against 1 x 8, float32: gradients differ by {difference(*single):.1e} ")


def test_batch_norm_does_not():
    (accumulated,), (whole,) = gradients("batch", 8, 1, 8), gradients("batch", 8, 8, 1)
    assert difference(accumulated, whole) > 1e-2


@pytest.mark.parametrize(("num_batches", "accumulate", "windows"), [(7, 3, [3, 3, 1]), (5, 4, [4, 1]), (2, 4, [2])])
def test_a_short_last_window_is_the_mean_over_its_clips(num_batches, accumulate, windows):
    """Lightning alone divides by the full window: the last step would be `accumulate / rest` times too small."""
    steps = gradients("group", 2 * num_batches, 2, accumulate)
    assert len(steps) == len(windows)
    first = 0
    for step, length in zip(steps, windows, strict=True):
        clips = batches(2 * num_batches, 2)[first : first + length]
        first += length
        torch.manual_seed(0)
        alone = mean_gradient(clips)
        assert difference(step, alone) < 1e-10


def mean_gradient(clips):
    """The gradient of the mean loss over all clips at once, without Lightning."""
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=5, dropout=0.0, zero_init_last_norm=False)
    with torch.no_grad():
        net.classifier.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    net = net.double()
    frames = torch.cat([b.frames_NKTCHW for b in clips]).flatten(0, 1)
    mean, std = torch.tensor([0.45, 0.225]).double()  # the module keeps them in float32
    x_NCTHW = ((frames.double() / 255 - mean) / std).transpose(1, 2)
    loss = torch.nn.functional.cross_entropy(net(x_NCTHW), torch.cat([b.labels for b in clips]))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
