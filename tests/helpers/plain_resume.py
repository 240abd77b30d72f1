"""A short plain training that is killed and resumed: its options, its steps, and what must be equal at its end."""

import torch
from runs import TINY
from small import assert_same

EPOCHS, BATCHES = 6, 5


def fit_words(videos, tmp_path, *more):
    return [
        "fit",
        *TINY,
        f"--data.train={videos}",
        f"--run_dir={tmp_path / 'run'}",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.limit_train_batches={BATCHES}",
        "--trainer.limit_val_batches=2",
        "--checkpoint.every_n_steps=2",
        "--trainer.callbacks+=runs.StepLog",
        f"--trainer.callbacks.path={tmp_path / 'steps.txt'}",
        *more,
    ]


def weights(path):
    content = torch.load(path, weights_only=True)
    return content["state_dict"], content["optimizer_states"], content["global_step"]


def steps_of(path):
    """Per start of a run: its first step, and the lines of the steps that it executed."""
    starts = []
    for line in (path / "steps.txt").read_text().splitlines():
        if line.startswith("start"):
            starts.append((int(line.split()[1]), []))
        elif line.startswith("step"):
            starts[-1][1].append(line)
    return starts


def assert_equals_the_whole_run(path, whole):
    assert_same(weights(path / "run/checkpoints/last.ckpt"), weights(whole / "run/checkpoints/last.ckpt"))
    assert_same(weights(path / "run/checkpoints/best.ckpt"), weights(whole / "run/checkpoints/best.ckpt"))
    assert (path / "run/metrics.csv").read_text() == (whole / "run/metrics.csv").read_text()
    wanted = {line.split()[1]: line for line in steps_of(whole)[0][1]}
    for _, lines in steps_of(path):
        for line in lines:
            assert line == wanted[line.split()[1]], "a step after a resume must see the same videos and loss"
    assert not list((path / "run/checkpoints").glob(".*"))
