"""Sharded training against DDP: the same numbers, and the same checkpoints, which either resumes from."""

from types import SimpleNamespace

import pytest
import torch
import torchruns
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from runs import TINY, run, runs_of
from small import assert_same

from video_gn.errors import ConfigError
from video_gn.run.metrics_file import read_metrics
from video_gn.training.sharded import ShardedStrategy, check_sharding

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")


def words(videos, path, strategy, *more):
    """Validations inside an epoch, of two videos and of one: a process without a batch must not be waited for."""
    return [
        "fit",
        *TINY,
        f"--data.train={videos}",
        "--data.split.val_fraction=0.1",
        "--data.val_batch_size=1",
        f"--run_dir={path / 'run'}",
        # No gradient is identically zero: the last norms' scales begin at 1.
        "--model.net.zero_init_last_norm=false",
        "--model.net.dropout=0",  # which each process draws for itself
        "--model.optimizer.momentum=0.9",
        "--model.schedule.name=cosine",
        "--data.batch_size=2",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=4",
        "--trainer.val_check_interval=2",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.gradient_clip_val=1",
        "--checkpoint.every_n_steps=1",
        "--checkpoint.keep_steps=9",
        f"--trainer.strategy={strategy}",
        "--trainer.callbacks+=runs.Float64",
        "--trainer.callbacks+=runs.OwnParameters",
        f"--trainer.callbacks.path={path}/own-{{rank}}.txt",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    """Run directories by strategy."""
    paths = {}
    for strategy in ("ddp", "sharded"):
        paths[strategy] = tmp_path_factory.mktemp(strategy)
        status, printed = torchruns.run(words(tiny_videos, paths[strategy], strategy), paths[strategy])
        assert status == 0, printed
    return paths


def load(path, name="last"):
    return torch.load(path / f"run/checkpoints/{name}.ckpt", weights_only=True)


def largest_difference(one, other):
    """Over all tensors; everything else must be equal."""
    if isinstance(one, torch.Tensor):
        assert type(one) is type(other) and one.shape == other.shape
        return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if isinstance(one, dict):
        assert list(one) == list(other)
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list):
        assert len(one) == len(other)
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    assert one == other
    return 0.0


@pytest.mark.slow
def test_it_equals_ddp_and_writes_the_same_file(trained):
    ours, wanted = load(trained["sharded"]), load(trained["ddp"])
    assert ours.keys() == wanted.keys()
    assert ours["state_dict"]["net.blocks.0.conv.weight"].dtype == torch.float64
    assert largest_difference({k: ours[k] for k in STATE}, {k: wanted[k] for k in STATE}) < 1e-10
    moved = load(trained["sharded"], "step-00000001")["state_dict"]
    assert all(not torch.equal(moved[n], ours["state_dict"][n]) for n in moved if n.endswith("conv.weight"))
    for row, other in zip(*(read_metrics(trained[s] / "run/metrics.csv") for s in ("sharded", "ddp")), strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_each_process_keeps_a_part(trained):
    own = {s: [int((trained[s] / f"own-{rank}.txt").read_text()) for rank in (0, 1)] for s in trained}
    assert own["ddp"][0] == own["ddp"][1] == sum(own["sharded"])
    assert max(own["sharded"]) < 0.52 * own["ddp"][0]


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["sharded", "ddp"])
def test_it_goes_on_from_either(tiny_videos, tmp_path, trained, begin):
    """Inside an epoch, after its validation: from its own checkpoint bit for bit."""
    checkpoint = trained[begin] / "run/checkpoints/step-00000003.ckpt"
    hooks = ["--trainer.callbacks+=runs.HookLog", f"--trainer.callbacks.path={tmp_path}/hooks-{{rank}}.txt"]
    argv = words(tiny_videos, tmp_path, "sharded", f"--ckpt_path={checkpoint}", *hooks)
    status, printed = torchruns.run(argv, tmp_path)
    assert status == 0, printed
    (tmp_path / "hooks-0.txt").rename(tmp_path / "hooks.txt")
    assert [first for first, _ in runs_of(tmp_path)] == [3]
    ours, wanted = load(tmp_path), load(trained[begin])
    if begin == "sharded":
        for key in STATE:
            assert_same(ours[key], wanted[key])
    else:
        assert largest_difference({k: ours[k] for k in STATE}, {k: wanted[k] for k in STATE}) < 1e-10


@pytest.mark.slow
def test_one_process_goes_on_from_it_and_tests_it(tiny_videos, tmp_path, trained):
    # One process with the global batch of the two.
    checkpoint = trained["sharded"] / "run/checkpoints/step-00000003.ckpt"
    one = words(tiny_videos, tmp_path, "auto", f"--ckpt_path={checkpoint}", "--data.batch_size=4")
    status, printed = run(one, tmp_path)
    assert status == 0, printed
    ours, wanted = load(tmp_path), load(trained["sharded"])
    assert largest_difference({k: ours[k] for k in STATE}, {k: wanted[k] for k in STATE}) < 1e-10
    left_out = ("--checkpoint.", "--trainer.callbacks")  # it is tested as anybody's checkpoint
    argv = [word for word in words(tiny_videos, tmp_path, "auto")[1:] if not word.startswith(left_out)]
    status, printed = run(["test", *argv, f"--ckpt_path={trained['sharded'] / 'run/checkpoints/best.ckpt'}"], tmp_path)
    assert status == 0, printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--averaging.kind=ema", "averaging.kind must be none with the sharded strategy: no process holds"),
        ("--precise_bn.num_batches=2", "precise_bn.num_batches must be 0 with the sharded strategy"),
    ],
)
def test_the_command_line_refuses(tiny_videos, tmp_path, setting, message):
    status, printed = run(words(tiny_videos, tmp_path, "sharded", setting), tmp_path)
    assert status == 2, printed
    assert f"video-gn: error: {message}" in printed


def test_what_does_not_go_together():
    def trainer(strategy, *callbacks):
        return SimpleNamespace(strategy=strategy, callbacks=list(callbacks))

    for strategy in (DDPStrategy(), ShardedStrategy()):
        check_sharding(trainer(strategy), precise_bn_batches=0, compiles=False)
    check_sharding(trainer(DDPStrategy(), WeightAveraging()), precise_bn_batches=2, compiles=True)
    with pytest.raises(
        ConfigError, match=r"averaging\.kind must be none with the sharded strategy: .* trainer\.strategy=ddp"
    ):
        check_sharding(trainer(ShardedStrategy(), WeightAveraging()), precise_bn_batches=0, compiles=False)
    with pytest.raises(ConfigError, match=r"precise_bn\.num_batches must be 0"):
        check_sharding(trainer(ShardedStrategy()), precise_bn_batches=2, compiles=False)
    with pytest.raises(ConfigError, match=r"model\.compile must be false"):
        check_sharding(trainer(ShardedStrategy()), precise_bn_batches=0, compiles=True)
    with pytest.raises(ConfigError, match=r"trainer\.strategy must be sharded .*, got ModelParallelStrategy"):
        check_sharding(trainer(ModelParallelStrategy()), precise_bn_batches=0, compiles=False)
