import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from video_gn.models._group_norm import GroupNorm, group_norm, group_norm_reference

module = importlib.import_module("video_gn.models._group_norm")  # the package's name is the function's
SHAPE = (3, 8, 2, 5, 3)
EPS = 1e-5


@pytest.fixture
def calls(monkeypatch):
    """How often the backward pass here was taken; from the smallest input on."""
    taken = []
    own = module._ChannelsLastGroupNorm.backward

    def backward(ctx, *gradients):
        taken.append(1)
        return own(ctx, *gradients)

    monkeypatch.setattr(module._ChannelsLastGroupNorm, "backward", staticmethod(backward))
    monkeypatch.setattr(module, "_PAYS_FROM", 0)
    return taken


@pytest.fixture(autouse=True)
def _float32_too(monkeypatch):
    """By default float32 is torch's; the code for it is held to the same."""
    monkeypatch.setitem(module._PAYS_BELOW, torch.float32, 8)


def draw(shape=SHAPE, dtype=torch.float32, memory_format=torch.channels_last_3d, shift=0.0):
    generator = torch.Generator().manual_seed(5)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    x, dy = ((t + shift).to(dtype).contiguous(memory_format=memory_format) for t in (x, dy))
    return x.requires_grad_(), dy, weight.requires_grad_(), bias.requires_grad_()


def results(function, x, dy, weight, bias, num_groups, eps=EPS):
    y = function(x, num_groups, weight, bias, eps)
    return y, *torch.autograd.grad(y, (x, weight, bias), dy)


def naive(x, dy, weight, bias, num_groups, eps=EPS):
    """Output and gradients in float64, by a loop over samples and groups, from Eq. 7 and its derivative."""
    x, dy, weight, bias = (t.detach().double() for t in (x, dy, weight, bias))
    y, dx, dweight, dbias = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    per_group = x.shape[1] // num_groups
    for n in range(x.shape[0]):
        for g in range(num_groups):
            at = slice(g * per_group, (g + 1) * per_group)
            values = x[n, at]
            deviation = (((values - values.mean()) ** 2).mean() + eps).sqrt()
            normal = (values - values.mean()) / deviation
            scale, shift = (t[at].view(-1, 1, 1, 1) for t in (weight, bias))
            y[n, at] = normal * scale + shift
            inner = dy[n, at] * scale
            dx[n, at] = (inner - inner.mean() - normal * (inner * normal).mean()) / deviation
            dweight[at] += (dy[n, at] * normal).sum((1, 2, 3))
            dbias[at] += dy[n, at].sum((1, 2, 3))
    return y, dx, dweight, dbias


def errors(found, exact):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_groups", [8, 4, 2])
@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("shape", [SHAPE, (2, 8, 4, 16, 16), (1, 40, 1, 7, 1)])
def test_as_near_to_float64_as_torch(calls, dtype, num_groups, shift, shape):
    tensors = draw(shape, dtype, shift=shift)
    exact = naive(*tensors, num_groups)
    ours = errors(results(group_norm, *tensors, num_groups), exact)
    torchs = errors(results(group_norm_reference, *tensors, num_groups), exact)
    limit = {torch.bfloat16: 16, torch.float32: 8}[dtype]
    assert len(calls) == (shape[1] // num_groups < limit)
    for mine, other in zip(ours, torchs, strict=True):
        # Both round each output once; sums in float32 in another order differ by a few of its units, 1.2e-7.
        assert mine <= 1.1 * other + 1e-6


def test_the_loop_is_torchs_formula():
    x, dy, weight, bias = draw(dtype=torch.float64)
    tensors = x, dy, weight.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    for found, exact in zip(results(group_norm_reference, *tensors, 4), naive(*tensors, 4), strict=True):
        torch.testing.assert_close(found, exact)


def test_slices_and_rows_of_any_length(monkeypatch, calls):
    for dtype in (torch.bfloat16, torch.float32):
        tensors = draw((2, 8, 3, 5, 7), dtype)
        whole = results(group_norm, *tensors, 4)
        for size, grain, row in ((64, 1, 512), (1, 1, 8), (8 * 7, 1, 40), (1 << 18, 1, 1)):
            for name, value in (("_SLICE", size), ("_GRAIN", grain), ("_ROW", row)):
                monkeypatch.setattr(module, name, value)
            for a, b in zip(results(group_norm, *tensors, 4), whole, strict=True):
                assert torch.equal(a, b)
    assert len(calls) == 10


@pytest.mark.parametrize("num_groups", [4, 1])
def test_gradcheck(calls, num_groups):
    function = module._ChannelsLastGroupNorm.apply
    x, _, weight, bias = draw((2, 4, 1, 2, 3), torch.float64)
    arguments = (x, num_groups, weight.detach().double().requires_grad_(), bias.detach().double().requires_grad_(), EPS)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
    assert calls


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 1)])
def test_only_what_needs_a_gradient_gets_one(calls, wanted):
    x, dy, weight, bias = draw()
    exact = naive(x, dy, weight, bias, 4)[1:]
    tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((x, weight, bias))]
    group_norm(tensors[0], 4, *tensors[1:], EPS).backward(dy)
    assert len(calls) == 1
    for i, (tensor, value) in enumerate(zip(tensors, exact, strict=True)):
        assert (tensor.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(tensor.grad.double(), value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", ["expanded", "contiguous", "strided"])
def test_a_gradient_of_any_memory_format(calls, make):
    x, dy, weight, bias = draw()
    if make == "expanded":
        dy = torch.randn(3, 8, 1, 1, 1).expand(SHAPE)
    elif make == "contiguous":
        dy = dy.contiguous()
    else:
        dy = torch.randn(3, 8, 2, 5, 6)[..., ::2]
    for found, exact in zip(results(group_norm, x, dy, weight, bias, 4), naive(x, dy, weight, bias, 4), strict=True):
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1


def test_output_and_gradient_keep_dtype_and_memory_format(calls):
    for dtype in (torch.bfloat16, torch.float32):
        x, dy, weight, bias = draw(dtype=dtype)
        y, dx, dweight, dbias = results(group_norm, x, dy, weight, bias, 4)
        assert y.dtype == dx.dtype == dtype
        assert dweight.dtype == dbias.dtype == torch.float32
        assert all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in (y, dx))


def test_torch_does_what_does_not_pay(calls):
    x, dy, weight, bias = draw()
    plain = x.detach().contiguous().requires_grad_()
    flat = x.detach()[:, :, 0].contiguous().requires_grad_()
    half = draw(dtype=torch.float16)
    cases = [
        (plain, dy, weight, bias),
        (flat, dy[:, :, 0], weight, bias),
        half,
    ]
    for case in cases:
        for a, b in zip(results(group_norm, *case, 4), results(group_norm_reference, *case, 4), strict=True):
            assert torch.equal(a, b)
    low = [t.detach().bfloat16().requires_grad_() for t in (x, weight, bias)]
    group_norm(low[0], 4, *low[1:], EPS).sum().backward()
    group_norm(x, 4).sum().backward()
    single = (
        torch.randn(2, 5, 3, 8).permute(3, 0, 1, 2)[None].requires_grad_()
    )  # of a batch's stride that is not its size
    assert single.is_contiguous(memory_format=torch.channels_last_3d)
    group_norm(single, 4, weight, bias).sum().backward()
    with torch.no_grad():
        assert torch.equal(group_norm(x, 4, weight, bias), F.group_norm(x, 4, weight, bias))
    assert group_norm(x.detach(), 4, weight.detach(), bias.detach()).grad_fn is None
    assert not calls


def test_errors_are_torchs(calls):
    x, _, weight, bias = draw()
    for num_groups in (3, 0, -1):
        with pytest.raises(Exception) as ours:
            group_norm(x, num_groups, weight, bias)
        with pytest.raises(ours.type):
            group_norm_reference(x, num_groups, weight, bias)


def test_an_empty_batch(calls):
    x = torch.zeros(0, 8, 2, 4, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    group_norm(x, 4, weight, bias).sum().backward()
    assert x.grad.shape == x.shape


def test_a_single_value_a_group_becomes_its_shift_in_batches_of_any_size():
    norm = GroupNorm(8, 8)
    nn.init.normal_(norm.bias)
    for num_clips in (1, 2):
        shifted = norm(torch.randn(num_clips, 8, 1, 1, 1)).flatten(1)
        torch.testing.assert_close(shifted, norm.bias.expand(num_clips, 8), rtol=0, atol=1e-3)


def test_small_inputs_are_torchs():
    x, _, weight, bias = draw()
    assert "NativeGroupNorm" in group_norm(x, 4, weight, bias).grad_fn.name()
    large = draw((1, 16, 8, 32, 32))
    assert "ChannelsLast" in group_norm(large[0], 4, *large[2:]).grad_fn.name()


def test_transforms_of_torch_func_work(calls):
    x, _, weight, bias = draw()

    def loss(weight, x):
        return group_norm(x[None], 4, weight, bias).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x.detach())
    for n in range(3):
        torch.testing.assert_close(each[n], torch.autograd.grad(loss(weight, x[n]), weight)[0])


class TestModule:
    def test_state_dict_and_text_are_those_of_torch(self):
        mine, torchs = GroupNorm(4, 8, eps=1e-3), nn.GroupNorm(4, 8, eps=1e-3)
        assert repr(mine) == repr(torchs)
        assert list(mine.state_dict()) == list(torchs.state_dict()) == ["weight", "bias"]
        torchs.load_state_dict(mine.state_dict())
        assert isinstance(copy.deepcopy(mine), nn.GroupNorm)

    @pytest.mark.parametrize("mode", [True, False])
    def test_same_as_torchs_in_a_small_net(self, calls, mode):
        torch.manual_seed(0)
        layers = [
            nn.Conv3d(3, 8, 3, bias=False),
            GroupNorm(4, 8),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3, bias=False),
            GroupNorm(8, 8),
        ]
        ours = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d).train(mode)
        theirs = copy.deepcopy(ours)
        for place in (1, 4):
            norm = nn.GroupNorm(layers[place].num_groups, 8)
            theirs[place] = norm
        clip = torch.randn(2, 3, 6, 9, 9).contiguous(memory_format=torch.channels_last_3d)
        for bfloat16 in (False, True):
            gradients = []
            direction = torch.randn(2, 8, 2, 5, 5)
            for net in (ours, theirs):
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    y = net(clip)
                assert y.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
                gradients.append((y, *torch.autograd.grad((y * direction).sum(), list(net.parameters()))))
            # bfloat16 rounds to 8 bits; the convolutions in between carry the last one's rounding on.
            tolerance = 3e-2 if bfloat16 else 1e-5
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())
        assert len(calls) == 4

    def test_checkpointed(self, calls):
        norm = GroupNorm(4, 8)
        x, dy, *_ = draw()
        plain = torch.autograd.grad(norm(x), (x, norm.weight), dy)
        again = torch.autograd.grad(
            torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False), (x, norm.weight), dy
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        assert len(calls) == 2

    def test_compiled_as_one_graph_without_the_own_backward(self, calls):
        norm = GroupNorm(4, 8)
        x, dy, *_ = draw()
        compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
        for a, b in zip(
            torch.autograd.grad(compiled(x), (x, norm.weight, norm.bias), dy),
            torch.autograd.grad(norm(x), (x, norm.weight, norm.bias), dy),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        assert len(calls) == 1

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
    def test_exported_and_traced(self, calls):
        net = nn.Sequential(nn.Conv3d(3, 8, 1), GroupNorm(4, 8)).to(memory_format=torch.channels_last_3d)
        clip = torch.randn(1, 3, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(torch.export.export(net, (clip,)).module()(clip), net(clip))
        torch.testing.assert_close(torch.jit.trace(net, clip)(clip), net(clip))


def test_float32_is_torchs_own_by_default(calls, monkeypatch):
    monkeypatch.delitem(module._PAYS_BELOW, torch.float32)
    x = torch.randn(SHAPE).to(memory_format=torch.channels_last_3d).requires_grad_()
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    group_norm(x, 4, weight, bias).sum().backward()
    assert not calls
