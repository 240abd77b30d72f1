"""Activation checkpointing changes memory and nothing else."""

import copy

import pytest
import torch
from nets import clips, randomize, small

from video_gn.models import LAYOUTS, _residual
from video_gn.training.optimizer import freeze_stages


def trained_step(net, x, *, checkpointing):
    """A copy after one forward and backward, and the loss."""
    net = copy.deepcopy(net).train()
    net.activation_checkpointing = checkpointing
    torch.manual_seed(11)
    loss = net(x).square().sum()
    loss.backward()
    after = torch.random.get_rng_state()
    return net, loss.detach(), after


@pytest.mark.parametrize(
    ("norm", "drop_path"), [("group", 0.5), ("batch", 0.0), ("batch", 0.5), ("batch_renorm", 0.0), ("none", 0.0)]
)
def test_a_step_is_the_same_bit_for_bit(norm, drop_path):
    # Without a warm-up of its limits Batch Renorm depends on its statistics from the first step on.
    options = {"warmup_start_steps": 0, "warmup_steps": 0} if norm == "batch_renorm" else None
    net = randomize(small(norm=norm, drop_path=drop_path, dropout=0.5, norm_options=options)).double()
    x = clips(3, 8, 32, dtype=torch.float64).requires_grad_()
    plain, loss, state = trained_step(net, x, checkpointing=False)
    gradient_of_x, x.grad = x.grad, None
    ours, our_loss, our_state = trained_step(net, x, checkpointing=True)
    assert torch.equal(loss, our_loss)
    assert torch.equal(state, our_state), "the random state goes on as without"
    assert torch.equal(x.grad, gradient_of_x)
    for (name, parameter), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert expected.grad is not None
        assert drop_path > 0 or expected.grad.abs().max() > 0, name  # a branch may be dropped for the whole batch
        assert torch.equal(parameter.grad, expected.grad), name
    expected = plain.state_dict()
    for name, value in ours.state_dict().items():  # running statistics and their count, too
        assert torch.equal(value, expected[name]), name
    if norm.startswith("batch"):
        assert all(int(v) == 1 for name, v in ours.state_dict().items() if name.endswith("num_batches_tracked"))


def saved_bytes(net, x):
    """Of the tensors that autograd keeps for the backward pass, each storage once; without the parameters and x."""
    own = {t.untyped_storage().data_ptr() for t in (x, *net.parameters())}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x).sum().backward()
    return sum(size for size, _ in sizes.values())


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_less_is_kept(layout, norm):
    net, x = small(norm=norm, layout=layout), clips(2, 8, 64)
    plain = saved_bytes(net, x)
    net.activation_checkpointing = True
    assert 0 < saved_bytes(net, x) <= 0.55 * plain
    net.activation_checkpointing = False
    assert saved_bytes(net, x) == plain, "it can be turned off again"


def test_only_training_with_gradients_recomputes(monkeypatch):
    calls = []
    real = _residual.checkpoint
    monkeypatch.setattr(_residual, "checkpoint", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    net, x = small(), clips(1, 8, 32)
    assert net.activation_checkpointing is False
    net(x)
    net.activation_checkpointing = True
    assert net.activation_checkpointing is True
    with torch.no_grad():
        net(x)
    net.eval()(x)
    assert calls == []
    net.train()(x)
    assert len(calls) == 17, "each residual block, not the stage; and the stem"
    calls.clear()
    for module in freeze_stages(net, 2):
        module.eval()
    net(x).sum().backward()
    assert len(calls) == 13, "a frozen stage keeps nothing anyway"


def test_it_is_no_argument_and_leaves_no_trace():
    net = small()
    names, arguments = list(net.state_dict()), dict(net.arguments)
    net.activation_checkpointing = True
    assert (list(net.state_dict()), net.arguments) == (names, arguments)
    assert copy.deepcopy(net).activation_checkpointing is True


def test_hooks_on_stages_are_called():
    net, seen = small(), []
    net.activation_checkpointing = True
    for stage in net.blocks:
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1]))
    net(clips(1, 8, 32))
    assert seen == [4, 16, 16, 32, 64, 128, 1]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_compiled_with_it_is_still_one_graph(norm):
    torch._dynamo.reset()
    net = randomize(small(norm=norm, dropout=0.0))
    net.activation_checkpointing = True
    compiled, x = copy.deepcopy(net), clips(2, 8, 32)
    compiled.compile(fullgraph=True, backend="aot_eager")
    for one in (compiled, net):
        one(x).square().sum().backward()
    for (name, ours), expected in zip(compiled.named_parameters(), net.parameters(), strict=True):
        # float32; the compiler's decompositions round in another order.
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-2, atol=1e-3 * scale, msg=name)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    torch._dynamo.reset()
