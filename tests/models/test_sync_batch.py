"""Sync Batch Norm in several processes is Batch Norm in one with the whole batch."""

import copy
from datetime import timedelta

import pytest
import torch
from norm_stacks import SHAPE, build, checkpointed, clip, equal, plainly, stack
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from video_gn.models.norms import make_norm

# Of five samples, how many each of two processes has.
SHARES = [(3, 2), (1, 4), (5, 0)]
FIVE = (5, *SHAPE[1:])
FORWARDS = {"plainly": plainly, "checkpointed": checkpointed}


def play(norm, mine):
    """Two steps, then one with gradients, then an evaluation, of one process's samples."""
    for step in range(2):
        norm(clip(FIVE, seed=step)[mine])
    x = clip(FIVE, seed=5)[mine].clone().requires_grad_()
    out = norm(x)
    (out * clip(FIVE, seed=6)[mine]).sum().backward()
    found = {"out": out.detach(), "x": x.grad, "grad of weight": norm.weight.grad, "grad of bias": norm.bias.grad}
    found["eval"] = norm.eval()(clip(FIVE, seed=7)[mine]).detach()
    return found | norm.state_dict()


def far_off(slices, dtype, offset):
    return (clip(FIVE, seed=5)[slices] + offset).to(dtype)


class Wrapped(nn.Module):
    def __init__(self, net, forward):
        super().__init__()
        self.net, self.how = net, forward

    def forward(self, x):
        return self.how(self.net, x)


def batch(step):
    return torch.randn(4, 3, 3, 5, 5, generator=torch.Generator().manual_seed(step)).double()


def train(net, module, mine):
    for step in range(2):
        module(batch(step)[mine]).square().mean().backward()
    return net.state_dict() | {f"grad of {name}": p.grad for name, p in net.named_parameters()}


def work(rank, path):
    """Every scenario in one process; what it finds goes into a file."""
    torch.set_num_threads(1)
    # A process that waits for ever fails after a minute.
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {
        share: play(build("sync_batch"), slice(0, share[0]) if rank == 0 else slice(share[0], 5)) for share in SHARES
    }
    norm = make_norm("sync_batch", SHAPE[1], momentum=1.0)
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    norm(far_off(mine, torch.float32, 1e4))
    found["offset"] = copy.deepcopy(norm.state_dict())
    found["low"] = norm(far_off(mine, torch.bfloat16, 64)).detach()
    gather, calls = distributed.all_gather, []
    distributed.all_gather = lambda *args: (calls.append(1), gather(*args))
    for name, forward in FORWARDS.items():
        net = stack("sync_batch")
        found[name] = train(net, DistributedDataParallel(Wrapped(net, forward)), slice(2 * rank, 2 * rank + 2))
    found["calls"] = len(calls)
    torch.save(found, f"{path}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Starting processes is slow: they play all scenarios."""
    path = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(work, args=(str(path),), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("share", SHARES)
def test_two_processes_are_one_with_the_whole_batch(two_processes, share):
    wanted = play(build("batch"), slice(None))
    a, b = (found[share] for found in two_processes)
    for name, value in wanted.items():
        if name in ("out", "x", "eval"):
            got = torch.cat([a[name], b[name]])
        elif name.startswith("grad of"):
            got = a[name] + b[name]  # of its own samples each
        else:
            assert torch.equal(a[name], b[name])
            got = a[name]
        # float64 against float64: rounding of sums of 75 values.
        torch.testing.assert_close(got, value, rtol=0, atol=1e-10)


def test_statistics_far_from_zero(two_processes):
    """float32 around 10,000, where a mean of squares less a squared mean has no digit that is right."""
    x = far_off(slice(None), torch.float32, 1e4).double()
    for found in two_processes:
        state = found["offset"]
        assert state["running_mean"].dtype == torch.float32
        # A float32 near 10,000 is off by up to 2**-11; sums of 45 of them by a few times that.
        torch.testing.assert_close(state["running_mean"].double(), x.mean((0, 2, 3, 4)), rtol=0, atol=2e-3)
        torch.testing.assert_close(state["running_var"].double(), x.var((0, 2, 3, 4)), rtol=1e-3, atol=0)


def test_low_precision_input_of_two_processes(two_processes):
    got = torch.cat([found["low"] for found in two_processes])
    assert got.dtype == torch.bfloat16
    wanted = make_norm("batch", SHAPE[1])(far_off(slice(None), torch.bfloat16, 64).float())
    # bfloat16 has 8 bits: an output is rounded by at most 2**-8 of it.
    torch.testing.assert_close(got.float(), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("name", FORWARDS)
def test_parallel_training_is_one_process_with_the_whole_batch(two_processes, name):
    net = stack("batch")
    wanted = train(net, net, slice(None))
    for found in two_processes:
        assert found[name].keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[name][key], value, rtol=0, atol=1e-10)
        assert equal(found[name], found["plainly"])
        # Three norms, two steps, two ways: a recomputation asks the others nothing.
        assert found["calls"] == 3 * 2 * 2


def test_one_process_is_batch_norm(tmp_path):
    a, b = build("sync_batch"), build("batch")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert equal(play(a, slice(None)), play(b, slice(None)))
    finally:
        distributed.destroy_process_group()
    assert equal(play(build("sync_batch"), slice(None)), play(build("batch"), slice(None)))
