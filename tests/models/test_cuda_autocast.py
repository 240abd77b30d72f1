"""Group Norm under CUDA's autocast: dtypes and memory formats of torch's fake CUDA tensors, values where a GPU is."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from video_gn.models import _group_norm as module
from video_gn.models import i3d
from video_gn.models._group_norm import GroupNorm, group_norm, group_norm_reference


@contextlib.contextmanager
def fake_cuda(dtype=torch.bfloat16):
    """Tensors are fake, and autocast is on for those of a CUDA device; torch.autocast itself refuses without one."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


class Made(TorchDispatchMode):
    """dtypes of the maps (5-D tensors) that are made."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.dtypes += [t.dtype for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.ndim == 5]
        return output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_one_map_of_the_inputs_dtype_and_memory_format_is_made(dtype, memory_format):
    with fake_cuda(dtype):
        x = torch.empty((2, 8, 4, 6, 6), dtype=dtype, memory_format=memory_format)
        with Made() as made:
            y = GroupNorm(2, 8)(x)
        assert made.dtypes == [dtype]
        assert (y.dtype, y.stride(), y.device.type) == (dtype, x.stride(), "cuda")
        with Made() as made:
            group_norm_reference(x, 2)
        assert torch.float32 in made.dtypes, "torch no longer widens: its own function can be used again"


def test_float32_and_other_devices_are_torchs(monkeypatch):
    monkeypatch.delattr(module, "_narrow_group_norm")
    with fake_cuda():
        x = torch.empty((2, 8, 4, 6, 6))
        assert group_norm(x, 2).dtype == torch.float32
        assert group_norm(x.bfloat16().to("cpu"), 2).dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_values_and_gradients_within_two_roundings(dtype, tolerance):
    """By the same call on a CPU, whose kernels differ from CUDA's."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn((2, 8, 3, 5, 5), generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(8, generator=generator).to(dtype) for _ in range(2))
    found, wanted = [], []
    for results, kind in ((found, torch.float32), (wanted, torch.float64)):
        inputs = [t.to(kind).requires_grad_() for t in (x, weight, bias)]
        if kind == torch.float32:
            y = module._narrow_group_norm(inputs[0].to(dtype), 2, inputs[1], inputs[2], 1e-5)
        else:
            y = group_norm_reference(inputs[0], 2, inputs[1], inputs[2])
        results += [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]
    for one, other in zip(found, wanted, strict=True):
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2 * tolerance * largest)


def test_a_net_keeps_no_more_for_its_backward_pass_than_with_batch_norm():
    """The bytes that a step's forward pass saves: its memory."""
    saved = {}
    for kind in ("group", "batch"):
        storages = {}

        def keep(tensor, storages=storages):
            if tensor.ndim == 5:  # what is saved of a channel or a group is small
                storages[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.itemsize
            return tensor

        with fake_cuda():
            groups = {"num_groups": 2} if kind == "group" else {}
            net = i3d(50, norm=kind, width=4, num_classes=5, **groups).train()
            x = torch.empty((2, 3, 8, 32, 32))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                output = net(x)
        saved[kind] = sum(storages.values())
        del output
    assert 0 < saved["group"] <= saved["batch"]


@pytest.mark.needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("num_groups", [1, 4, 32])
def test_on_a_gpu(dtype, tolerance, num_groups):
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn((2, 32, 4, 14, 14), generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(32, generator=generator).to(dtype) for _ in range(2))
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = group_norm_reference(exact[0], num_groups, exact[1], exact[2])
    wanted = [y, *torch.autograd.grad(y, exact, dy.double())]
    norm = GroupNorm(num_groups, 32).cuda()
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    x = x.cuda().to(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.autocast("cuda", dtype=dtype):
        y = norm(x)
    assert (y.dtype, y.stride()) == (dtype, x.stride())
    found = [y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy.cuda())]
    assert found[2].dtype == torch.float32
    for one, other in zip(found, wanted, strict=True):
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one.double().cpu(), other, rtol=0, atol=2 * tolerance * largest)
