"""The batch family: against loops over plain numbers, and recomputed."""

import copy
import itertools
import threading

import pytest
import torch
from norm_stacks import EPS, MOMENTUM, RENORM, build, checkpointed, clip, equal, plainly, stack
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from video_gn.models._batch_norms import BatchRenorm, FrozenBatchNorm, checkpoint_contexts, recomputing
from video_gn.models.norms import make_norm
from video_gn.models.tables import BATCH_FAMILY

# ---- the definitions, one value at a time, in Python's float64 ----------------------------------------


def moments(values):
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


def apply(x, per_channel):
    out = torch.empty_like(x)
    for index in itertools.product(*(range(size) for size in x.shape)):
        out[index] = per_channel[index[1]](float(x[index]))
    return out


class Naive:
    """A norm of the batch family, with its own running statistics as lists."""

    def __init__(self, kind, norm):
        self.kind, self.norm = kind, norm
        self.weight, self.bias = norm.weight.tolist(), norm.bias.tolist()
        self.mean, self.var = norm.running_mean.tolist(), norm.running_var.tolist()
        self.step = 0

    def evaluate(self, x):
        return apply(x, [self._affine(c, self.mean[c], (self.var[c] + EPS) ** 0.5) for c in range(x.shape[1])])

    def train(self, x, *, correction=None):
        """A training step; `correction` gives r and d of each channel instead of the statistics'."""
        if self.kind == "frozen_batch":
            return self.evaluate(x), None
        rows, taken = [], []
        for c in range(x.shape[1]):
            values = x[:, c].flatten().tolist()
            mean, var = moments(values)
            sigma, running = (var + EPS) ** 0.5, (self.var[c] + EPS) ** 0.5
            r, d = 1.0, 0.0
            if self.kind == "batch_renorm":
                part = min(max((self.step - RENORM["warmup_start_steps"]) / RENORM["warmup_steps"], 0), 1)
                r_max, d_max = 1 + part * (RENORM["r_max"] - 1), part * RENORM["d_max"]
                r = min(max(sigma / running, 1 / r_max), r_max)
                d = min(max((mean - self.mean[c]) / running, -d_max), d_max)
            if correction is not None:
                r, d = correction[c]
            taken.append((r, d))
            rows.append(self._affine(c, mean, sigma, r, d))
            self.mean[c] += MOMENTUM * (mean - self.mean[c])
            if self.kind == "batch_renorm":
                self.var[c] = (running + MOMENTUM * (sigma - running)) ** 2 - EPS
            else:
                self.var[c] += MOMENTUM * (var * len(values) / (len(values) - 1) - self.var[c])
        self.step += 1
        return apply(x, rows), taken

    def _affine(self, c, mean, sigma, r=1.0, d=0.0):
        weight, bias = self.weight[c], self.bias[c]
        return lambda v: ((v - mean) / sigma * r + d) * weight + bias


@pytest.mark.parametrize("kind", BATCH_FAMILY)
def test_steps_statistics_and_evaluation_are_the_definition(kind):
    norm = build(kind)
    naive = Naive(kind, norm)
    corrections = []
    for step, scale in enumerate((1, 1.3, 1.6, 0.3, 2.2)):
        x = clip(seed=step) * scale
        expected, taken = naive.train(x)
        corrections += taken or []
        # float64 against float64: rounding of sums of 45 values.
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_mean.tolist(), naive.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var.tolist(), naive.var, rtol=1e-12, atol=1e-12)
    assert int(norm.num_batches_tracked) == (0 if kind == "frozen_batch" else 5)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x = clip(seed=9)
    torch.testing.assert_close(norm(x), naive.evaluate(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    if kind == "batch_renorm":  # the comparison has met every case
        assert {1 / 1.5, 1.5} < {r for r, _ in corrections} and {-0.5, 0.5} & {d for _, d in corrections}
        assert any(1 / 1.5 < r < 1.5 and r != 1 for r, _ in corrections)
        assert any(-0.5 < d < 0.5 and d != 0 for _, d in corrections)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", BATCH_FAMILY)
def test_gradient_is_the_definitions(kind, training):
    shape = (2, 4, 3, 1, 1)
    norm = build(kind).train(training)
    norm.num_batches_tracked.fill_(10)
    x, upstream = clip(shape).requires_grad_(), clip(shape, seed=3)
    start = Naive(kind, norm)
    start.step = 10
    _, correction = copy.deepcopy(start).train(x.detach())
    (norm(x) * upstream).sum().backward()

    def loss(x):
        naive = copy.deepcopy(start)
        # r and d stay what they were at x: they take no gradient.
        out = naive.train(x, correction=correction)[0] if training else naive.evaluate(x)
        return float((out * upstream).sum())

    step = 1e-6
    for index in itertools.product(*(range(size) for size in shape)):
        sides = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved[index] += sign * step
            sides.append(loss(moved))
        # Central differences: an error of rounding / step, about 1e-8 of values near 10.
        assert float(x.grad[index]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-6)
    if kind == "frozen_batch":
        assert norm.weight.grad is None and norm.bias.grad is None
        return
    for parameter, mine in ((norm.weight, start.weight), (norm.bias, start.bias)):
        for c in range(4):
            value = mine[c]
            mine[c] = value + 1
            above = loss(x.detach())
            mine[c] = value
            # The output is linear in scale and shift.
            assert float(parameter.grad[c]) == pytest.approx(above - loss(x.detach()), rel=1e-9, abs=1e-9)


# ---- kinds ---------------------------------------------------------------------------------------------


def test_torchs_utilities_know_what_is_batch_norm():
    bases = {kind: isinstance(make_norm(kind, 4), nn.modules.batchnorm._BatchNorm) for kind in BATCH_FAMILY}
    # `update_bn` would reset the fixed statistics of the others, `convert_sync_batchnorm` put Batch Norm there.
    assert bases == {"batch": True, "sync_batch": True, "frozen_batch": False, "batch_renorm": False}
    state = build("batch").state_dict()
    for kind in BATCH_FAMILY:
        norm = build(kind)
        norm.load_state_dict(state)
        assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("kind", ["batch", "sync_batch", "batch_renorm"])
def test_no_momentum_is_the_plain_average(kind):
    norm = build(kind, statistics=False)
    norm.momentum = None
    batches = [clip(seed=seed) for seed in range(3)]
    for x in batches:
        norm(x)
    mean = torch.stack([x.mean((0, 2, 3, 4)) for x in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)


def test_frozen_stays_frozen_even_where_all_is_unfrozen():
    norm = build("frozen_batch")
    assert not any(p.requires_grad for p in norm.parameters())
    norm.requires_grad_(True)
    x = clip().requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is None and norm.bias.grad is None and x.grad is not None
    assert isinstance(norm, FrozenBatchNorm)


@pytest.mark.parametrize("warmup", [{"r_max": 1, "d_max": 0}, {"warmup_start_steps": 9}])
def test_batch_renorm_without_room_is_batch_norm(warmup):
    norm, plain = build("batch_renorm", **warmup), build("batch")
    for seed in range(4):
        x, y = (clip(seed=seed).requires_grad_() for _ in range(2))
        a, b = norm(x), plain(y)
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        for out in (a, b):
            out.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-11)


def test_batch_renorm_within_its_limits_is_what_evaluation_gives():
    norm = build("batch_renorm", r_max=1e6, d_max=1e6, warmup_start_steps=0, warmup_steps=0)
    for seed in range(3):
        x = clip(seed=seed)
        evaluated = copy.deepcopy(norm).eval()(x)
        torch.testing.assert_close(norm(x), evaluated, rtol=1e-12, atol=1e-12)


def test_limits_of_batch_renorm_by_step():
    norm = BatchRenorm(2, r_max=3, d_max=5, warmup_start_steps=10, warmup_steps=20)
    for step, wanted in ((0, (1, 0)), (10, (1, 0)), (15, (1.5, 1.25)), (20, (2, 2.5)), (30, (3, 5)), (99, (3, 5))):
        norm.num_batches_tracked.fill_(step)
        assert tuple(float(limit) for limit in norm.limits()) == wanted
    norm = BatchRenorm(2, r_max=3, d_max=5, warmup_start_steps=10, warmup_steps=0)
    for step, wanted in ((9, (1, 0)), (10, (3, 5))):
        norm.num_batches_tracked.fill_(step)
        assert tuple(float(limit) for limit in norm.limits()) == wanted


def test_batch_renorm_goes_on_exactly_after_a_resume():
    norm = build("batch_renorm")
    for seed in range(2):
        norm(clip(seed=seed))
    other = build("batch_renorm", statistics=False)
    other.load_state_dict(norm.state_dict())
    for seed in range(2, 5):
        assert torch.equal(norm(clip(seed=seed)), other(clip(seed=seed)))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in norm.state_dict().items())


def test_none_is_exactly_a_scale_and_a_shift():
    norm = make_norm("none", 4).double()
    x = clip()
    assert torch.equal(norm(x), x)
    norm.weight.data = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()  # products without rounding
    norm.bias.data = torch.arange(4.0).double()
    assert torch.equal(norm(x), x * norm.weight.view(4, 1, 1, 1) + norm.bias.view(4, 1, 1, 1))


@pytest.mark.parametrize("kind", [*BATCH_FAMILY, "none"])
@pytest.mark.parametrize("shape", [(3, 5, 2, 2, 2), (4,), (4, 4, 2)[:1]])
def test_another_number_of_channels_is_an_error(kind, shape):
    with pytest.raises(ValueError, match=r"input must be of shape \(N, 4, \.\.\.\), got \("):
        make_norm(kind, 4)(torch.zeros(shape))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [*BATCH_FAMILY, "none"])
def test_low_precision_input(kind, training):
    """As under autocast: parameters and statistics stay float32, statistics are taken in float32."""
    norm = make_norm(kind, 4, **({"norm_options": {"warmup_start_steps": 0}} if kind == "batch_renorm" else {}))
    low, high = norm.train(training), copy.deepcopy(norm).train(training)
    # A mean of 64 in bfloat16 would be off by up to 0.25.
    x = (torch.randn(3, 4, 3, 5, 7, generator=torch.Generator().manual_seed(0)) + 64).bfloat16().requires_grad_()
    y = x.detach().float().requires_grad_()
    a, b = low(x), high(y)
    assert a.dtype == torch.bfloat16
    # bfloat16 has 8 bits: an output is rounded by at most 2**-8 of it.
    torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=2**-7)
    a.float().square().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and bool(x.grad.isfinite().all())
    for name, value in low.state_dict().items():
        assert value.dtype == high.state_dict()[name].dtype
        torch.testing.assert_close(value, high.state_dict()[name], rtol=1e-6, atol=1e-6)
    # A network that is bfloat16 as a whole.
    assert copy.deepcopy(low).bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [*BATCH_FAMILY, "none"])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (3, 4, 5, 2), (3, 4, 3, 1, 5)])
def test_any_number_of_dimensions(kind, shape):
    norm = make_norm(kind, 4).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    as_5d = x.reshape(*shape, *[1] * (5 - len(shape)))
    torch.testing.assert_close(norm(x), copy.deepcopy(norm)(as_5d).reshape(shape), rtol=1e-12, atol=1e-12)


# ---- recomputation -------------------------------------------------------------------------------------


def nested(net, x):
    return checkpoint(checkpointed, net, x, use_reentrant=False, context_fn=checkpoint_contexts)


def run(kind, forward, *, backwards=1, accumulate=1):
    """Three optimizer steps: the network's state and the gradients of the last."""
    net = stack(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        losses = []
        for part in range(accumulate):
            x = torch.randn(2, 3, 3, 5, 5, generator=torch.Generator().manual_seed(10 * step + part)).double()
            losses.append(forward(net, x.mul(1 + step)).square().mean())
        for loss in losses:  # all forwards first: what one norm took last is not what the first of them took
            for i in range(backwards):
                loss.backward(retain_graph=i + 1 < backwards)
        optimizer.step()
    return net.state_dict() | {f"grad of {name}": p.grad for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("forward", [checkpointed, nested])
@pytest.mark.parametrize("kind", [*BATCH_FAMILY, "group", "none"])
def test_checkpoints_change_nothing(kind, forward):
    assert equal(run(kind, forward), run(kind, plainly))


@pytest.mark.parametrize("kind", ["batch", "batch_renorm"])
def test_checkpoints_that_are_recomputed_twice_change_nothing(kind):
    assert equal(run(kind, checkpointed, backwards=2), run(kind, plainly, backwards=2))
    assert equal(run(kind, checkpointed, accumulate=2), run(kind, plainly, accumulate=2))


@pytest.mark.parametrize("kind", ["batch", "sync_batch", "batch_renorm"])
def test_without_the_contexts_checkpoints_update_twice(kind):
    def forward(net, x):
        return checkpointed(net, x, noop_context_fn)

    a, b = run(kind, forward), run(kind, plainly)
    assert int(a["1.num_batches_tracked"]) == 6 and int(b["1.num_batches_tracked"]) == 3
    assert not torch.equal(a["1.running_mean"], b["1.running_mean"])


@pytest.mark.parametrize("kind", BATCH_FAMILY)
def test_recomputing_leaves_no_trace(kind):
    norm = build(kind)
    norm.num_batches_tracked.fill_(7)
    before = copy.deepcopy(norm.state_dict())
    with recomputing():
        out = norm(clip())
        with recomputing():  # leaving the inner one does not leave the outer
            norm(clip())
        norm(clip())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(out, norm(clip()))
    if kind != "frozen_batch":
        assert int(norm.num_batches_tracked) == 8
        with pytest.raises(KeyError):
            with recomputing():
                raise KeyError
        norm(clip())
        assert int(norm.num_batches_tracked) == 9


def test_recomputing_is_of_this_thread_alone():
    norm = build("batch")
    with recomputing():
        thread = threading.Thread(target=norm, args=(clip(),))
        thread.start()
        thread.join()
        assert int(norm.num_batches_tracked) == 1
        norm(clip())
    assert int(norm.num_batches_tracked) == 1


def test_compiled_norms_see_that_they_are_recomputed():
    torch._dynamo.reset()
    norm = build("batch")
    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    for count in (1, 2):
        compiled(clip())
        with recomputing():
            compiled(clip())
        assert int(norm.num_batches_tracked) == count
    # Compiled within a checkpoint, where the forward is seen first.
    torch._dynamo.reset()
    x = clip().requires_grad_()
    for count in (3, 4):
        out = checkpoint(compiled, x, use_reentrant=False, context_fn=checkpoint_contexts)
        out.sum().backward()
        assert int(norm.num_batches_tracked) == count
    torch._dynamo.reset()
