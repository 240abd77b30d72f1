"""Going on with another batch size or number of processes: every clip of the epoch once, but for those told."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import torchruns
from runs import TINY, run, runs_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_gn.errors import ConfigError
from video_gn.run.batch_change import BatchChange, Cut, batches_to_skip, find_change
from video_gn.run.metrics_file import read_metrics

# 24 training videos: 6 batches of 4, a validation every 8 clips, two epochs.
NUM_VIDEOS, BATCH = 24, 4
SLOW = pytest.mark.slow


def words(videos, path, *more):
    return [
        "fit",
        *TINY,
        f"--data.train={videos}",
        f"--run_dir={path / 'run'}",
        "--model.schedule.name=cosine",
        "--averaging.kind=mean",
        "--trainer.max_epochs=2",
        "--trainer.val_check_interval=2",
        "--checkpoint.every_n_steps=1",
        "--checkpoint.keep_steps=30",
        "--trainer.callbacks+=runs.HookLog",
        f"--trainer.callbacks.path={path}/hooks-{{rank}}.txt",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    status, printed = run(words(tiny_videos, path, f"--trainer.callbacks.path={path}/hooks.txt"), path)
    assert status == 0, printed
    return path


def at_step(whole, path, step):
    """The whole run as it was killed right after a checkpoint."""
    shutil.copytree(whole / "run", path / "run")
    for kept in (path / "run/checkpoints").glob("step-*.ckpt"):
        if int(kept.stem.removeprefix("step-")) > step:
            kept.unlink()
    (path / "run/checkpoints/last.ckpt").unlink()
    shutil.copy(path / f"run/checkpoints/step-{step:08d}.ckpt", path / "run/checkpoints/last.ckpt")


def clips_of(path, name="hooks.txt"):
    """Videos of each batch of a run, in order."""
    if name != "hooks.txt":
        shutil.copy(path / name, path / "hooks.txt")
    found = [re.match(r"batch \d+ \[(.*)\]", line) for line in runs_of(path)[-1][1]]
    return [[int(n) for n in match[1].split(",")] for match in found if match]


def rates_of(path):
    lines = runs_of(path)[-1][1]
    return {int(m[1]): float(m[2]) for line in lines if (m := re.match(r"optimizer (\d+) \[([^,\]]+)", line))}


def validations_of(path, clips_per_step):
    lines = runs_of(path)[-1][1]
    return [int(line.split()[-1]) * clips_per_step for line in lines if line.startswith("validation at")]


def flat(lists):
    return [value for values in lists for value in values]


def tensorboard_of(path):
    """Of each figure its values by step, which Lightning counts from 0 there."""
    found = EventAccumulator(str(path))
    found.Reload()
    return {
        tag: {event.step + 1: pytest.approx(event.value) for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }


def go_on(tiny_videos, tmp_path, *more, processes=1):
    argv = words(tiny_videos, tmp_path, "--ckpt_path=last", *more)
    if processes == 1:
        status, printed = run([*argv, f"--trainer.callbacks.path={tmp_path}/hooks-0.txt"], tmp_path)
    else:
        status, printed = torchruns.run(argv, tmp_path, per_node=processes)
    assert status == 0, printed
    ranks = [clips_of(tmp_path, f"hooks-{rank}.txt") for rank in reversed(range(processes))][::-1]
    return printed, [flat(parts) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("step", "settings", "processes", "again", "validations"),
    [
        # 12 clips of the second epoch are seen: exactly 6 batches of 2.
        (9, ["--data.batch_size=2", "--trainer.val_check_interval=4"], 1, 0, [40, 48]),
        # ... or one of 8, after which the validation is done, and 4 clips come again.
        pytest.param(9, ["--trainer.val_check_interval=1"], 2, 4, [40, 48], marks=SLOW),
        # After 20 clips the last place for 8 is 16, which were validated.
        pytest.param(11, ["--data.batch_size=8", "--trainer.val_check_interval=1"], 1, 4, [48], marks=SLOW),
        # A validation after 12 clips was never done: it is not taken as done.
        pytest.param(9, ["--data.batch_size=12", "--trainer.val_check_interval=1"], 1, 12, [36, 48], marks=SLOW),
        # Between two epochs nothing comes again.
        pytest.param(6, ["--trainer.val_check_interval=1"], 2, 0, [32, 40, 48], marks=SLOW),
    ],
    ids=["smaller", "two processes", "larger", "other places", "between epochs"],
)
def test_every_clip_of_the_epoch_once(tiny_videos, tmp_path, whole, step, settings, processes, again, validations):
    at_step(whole, tmp_path, step)
    printed, batches = go_on(tiny_videos, tmp_path, *settings, processes=processes)
    size = len(batches[0])
    assert {len(batch) for batch in batches} == {size}
    order = flat(clips_of(whole))
    seen, rest = order[: step * BATCH], flat(batches)
    assert rest == order[step * BATCH - again :], "the clips' order is the seed's alone"
    epoch = (seen[: len(seen) - again] + rest)[(step - 1) // 6 * NUM_VIDEOS :][:NUM_VIDEOS]
    assert sorted(epoch) == list(range(NUM_VIDEOS))
    begun = (step * BATCH - again) // size
    assert f"{again} clips are seen again. Step {step} counts as step {begun} from now on" in printed
    assert runs_of(tmp_path)[-1][0] == begun
    assert validations_of(tmp_path, size) == validations
    # The schedule goes by clips.
    wanted = {at * BATCH: rate for at, rate in rates_of(whole).items()}
    found = {at * size: rate for at, rate in rates_of(tmp_path).items()}
    common = wanted.keys() & found.keys()
    assert common and all(found[at] == pytest.approx(wanted[at], rel=1e-12) for at in common)
    rows = read_metrics(tmp_path / "run/metrics.csv")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 2 * NUM_VIDEOS // size
    # Of the validations before, those within one present step are one row: the last.
    before = {-(-clips // size) for clips in range(8, begun * size + 1, 8)}
    wanted_rows = sorted(before | {clips // size for clips in validations})
    assert [row["step"] for row in rows if "val/top1" in row] == wanted_rows
    # TensorBoard has them by the same steps, and the former counting as a run beside it.
    told = tensorboard_of(tmp_path / "run/tensorboard")
    for name in ("val/top1", "train/loss"):
        wanted = {row["step"]: row[name] for row in rows if name in row}
        assert told[name].keys() == wanted.keys()
        # Later losses are those of the first process alone.
        assert all(told[name][at] == wanted[at] for at in wanted if name == "val/top1" or at <= begun)
    assert tensorboard_of(tmp_path / "run/tensorboard/earlier-1")["train/loss"].keys() >= set(range(1, step + 1))
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 2 * NUM_VIDEOS // size
    # Every step's weights were averaged: none waited for the old step number to come.
    assert int(content["averaging_state"]["n_averaged"]) == step + len(batches)
    names = {p.name for p in (tmp_path / "run/checkpoints").iterdir()}
    assert f"earlier-{step:08d}.ckpt" in names and f"step-{begun + 1:08d}.ckpt" in names


@pytest.mark.slow
def test_the_same_global_batch_is_no_change(tiny_videos, tmp_path, whole):
    at_step(whole, tmp_path, 9)
    printed, batches = go_on(tiny_videos, tmp_path, "--data.batch_size=2", processes=2)
    assert "seen again" not in printed
    assert batches == clips_of(whole)[9:]
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.csv")] == list(range(1, 13))
    assert validations_of(tmp_path, BATCH) == [40, 48]


@pytest.mark.slow
def test_killed_before_its_first_save_it_changes_again(tiny_videos, tmp_path, whole):
    """What a change does to the run's files is the same the second time."""
    at_step(whole, tmp_path, 9)
    last = tmp_path / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    go_on(tiny_videos, tmp_path, "--data.batch_size=2", "--trainer.val_check_interval=4")
    table = (tmp_path / "run/metrics.csv").read_text()
    last.unlink()
    last.write_bytes(before)
    go_on(tiny_videos, tmp_path, "--data.batch_size=2", "--trainer.val_check_interval=4")
    assert (tmp_path / "run/metrics.csv").read_text() == table


# ---- the parts -----------------------------------------------------------------------------------


def never(batches):
    return False


@pytest.mark.parametrize(
    ("cut", "clips", "wanted"),
    [
        (Cut(8, 1, 10), 0, 0),
        (Cut(8, 1, 10), 7, 0),
        (Cut(8, 1, 10), 20, 2),
        (Cut(8, 1, 10), 24, 3),
        # Two batches make a step: 24 clips are a step and a half.
        (Cut(8, 2, 10), 24, 2),
        (Cut(8, 2, 10), 32, 4),
        # The epoch's end has still to come.
        (Cut(8, 1, 3), 24, 2),
        (Cut(8, 1, 3), 28, 2),
        (Cut(8, 2, 5), 40, 4),
        (Cut(8, 2, 4), 40, 2),
        (Cut(8, 1, 0), 40, 0),
    ],
)
def test_the_place_is_rounded_down_to_a_step(cut, clips, wanted):
    assert batches_to_skip(cut, clips=clips, validates=never, validated=-1) == wanted


@pytest.mark.parametrize(("validated", "wanted"), [(-1, 1), (8, 1), (16, 2)])
def test_a_validation_that_was_not_done_is_not_skipped(validated, wanted):
    def after_two(batches):
        return batches == 2

    assert batches_to_skip(Cut(8, 1, 9), clips=20, validates=after_two, validated=validated) == wanted


def test_rows_take_their_new_steps():
    # 7 batches of 4, accumulated by 2: steps after 8, 16, 24 and 28 clips; now 3 batches of 8: 8, 16, 24.
    change = BatchChange(Cut(4, 2, 7), Cut(8, 1, 3), epoch=1, seen=24, batches=2, step=7)
    assert (change.clips, change.new_step) == (16, 5)
    rows = [{"step": s, "epoch": (s - 1) // 4, "loss": float(s)} for s in range(1, 9)]
    rows[2]["val/top1"] = 0.5
    found = change.renumbered(rows)
    assert [(r["step"], r["loss"]) for r in found] == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (5, 6.0)]
    assert found[2]["val/top1"] == 0.5
    # Rows that know their clips are in any counting.
    with_clips = [{"step": 90 + i, "epoch": 1, "clips": c, "loss": 0.0} for i, c in enumerate((8, 16, 24))]
    assert [r["step"] for r in change.renumbered(with_clips)] == [4, 5]


def test_repeats_must_stay_inside_an_epoch():
    position = {"epoch": 0, "batches": 1, "clips": 4, "clips_per_batch": 4, "accumulate": 1, "batches_per_epoch": 6}

    class Data:
        batch_size = 4
        augment = SimpleNamespace(repeats=2)
        manifests = {"train": SimpleNamespace(records=range(24))}  # noqa: RUF012

    trainer = SimpleNamespace(
        datamodule=Data(), state=SimpleNamespace(fn="fit"), world_size=1, limit_train_batches=1.0,
        accumulate_grad_batches=1,
    )  # fmt: skip
    checkpoint = {Data.__qualname__: position | {"repeats": 1}, "global_step": 1}
    with pytest.raises(ConfigError, match=r"data\.augment\.repeats must stay 1 inside an epoch, got 2\. Resume with"):
        find_change(trainer, checkpoint)
    checkpoint = {Data.__qualname__: position | {"repeats": 1, "clips": 0}, "global_step": 6}
    assert find_change(trainer, checkpoint) is None
