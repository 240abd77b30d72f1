"""Two processes, however they are started: one end, bit for bit, also after signals and kills of any of them."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchruns
from resuming import assert_resumes_like, lines_of, steps_done, without_saves
from runs import TINY, children, free_port, runs_of
from small import assert_same

from video_gn.errors import ConfigError
from video_gn.run import torchrun as launch
from video_gn.run.metrics_file import read_metrics

KILLS = int(os.environ.get("VIDEO_GN_KILLS", "3"))
EPOCHS, BATCHES = 2, 6  # windows of 2 batches: 3 optimizer steps an epoch
STEPS = EPOCHS * 3


def words(videos, path, *more, pause=0.0):
    """Dropout, mixup, accumulation, averaging, a validation inside the epoch, a loader worker in each process."""
    return [
        "fit",
        *TINY,
        f"--data.train={videos}",
        f"--run_dir={path / 'run'}",
        "--model.net.dropout=0.3",
        "--model.mixing.mixup_alpha=0.4",
        "--model.optimizer.momentum=0.9",
        "--model.schedule.name=cosine",
        "--averaging.kind=ema",
        "--averaging.decay=0.8",
        "--data.batch_size=2",
        "--data.loader.num_workers=1",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.limit_train_batches={BATCHES}",
        "--trainer.limit_val_batches=2",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=4",
        "--checkpoint.every_n_steps=1",
        "--trainer.callbacks+=runs.HookLog",
        f"--trainer.callbacks.path={path}/hooks-{{rank}}.txt",
        f"--trainer.callbacks.pause={pause}",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tiny_videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    status, printed = torchruns.run(words(tiny_videos, path), path)
    assert status == 0, printed
    assert "global batch 8 = 2 process(es) x 2 clips x 2 accumulated" in printed
    return path


STATE = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def assert_equal_end(path, whole):
    for name in ("last", "best"):
        ours, wanted = (torch.load(p / f"run/checkpoints/{name}.ckpt", weights_only=True) for p in (path, whole))
        for key in STATE:
            assert_same(ours[key], wanted[key])
    assert (path / "run/metrics.csv").read_text() == (whole / "run/metrics.csv").read_text()
    assert not list((path / "run/checkpoints").glob(".*"))


def hooks_of(path, rank):
    """The hooks of each start of a process: its first step, and lines."""
    name = path / f"hooks-{rank}.txt"
    (path / "hooks.txt").write_text(name.read_text() if name.exists() else "")
    return runs_of(path)


# ---- starts ------------------------------------------------------------------------------------


def run_program(command, path):
    """A fresh process, which finds this directory's callbacks."""
    found = [os.environ.get("PYTHONPATH"), *(str(Path(m).parent) for m in (__file__, torchruns.__file__))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, found))}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_torchrun_on_one_node(tiny_videos, tmp_path, whole):
    """The real program, without trainer.devices, which it fills in."""
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", "-m", "video_gn"]
    run_program([*torchrun, *words(tiny_videos, tmp_path)], tmp_path)
    assert_equal_end(tmp_path, whole)
    assert [hooks_of(tmp_path, rank) for rank in (0, 1)] == [hooks_of(whole, rank) for rank in (0, 1)]
    rows = read_metrics(whole / "run/metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_lightning_starts_them_itself(tiny_videos, tmp_path, whole):
    run_program(["video_gn", *words(tiny_videos, tmp_path, "--trainer.devices=2")], tmp_path)
    assert_equal_end(tmp_path, whole)


@pytest.mark.slow
def test_torchrun_on_two_nodes(tiny_videos, tmp_path, whole):
    port = free_port()
    logs = [tmp_path / f"log-{node}.txt" for node in (0, 1)]
    launched = {"nodes": 2, "per_node": 1, "port": port}
    nodes = [
        torchruns.start(words(tiny_videos, tmp_path), tmp_path, logs[node], node_rank=node, **launched)
        for node in (0, 1)
    ]
    for node, log in zip(nodes, logs, strict=True):
        node.join(120)
        assert node.exitcode == 0, log.read_text()
    assert_equal_end(tmp_path, whole)


# ---- signals -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_torchrun_is_asked_to_stop(tiny_videos, tmp_path, whole, number):
    """It hands the signal on, and both processes stop after the same step, with a checkpoint of it."""
    log = tmp_path / "log.txt"
    process = torchruns.start(
        words(tiny_videos, tmp_path, "--checkpoint.every_n_steps=1000", pause=0.05), tmp_path, log
    )
    wait_for(lambda: len(steps_done(lines_of(tmp_path / "hooks-0.txt"))) >= 1, process, log)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode not in (None, 0), log.read_text()
    step = int(
        re.search(rf"{number.name}: stopped after step (\d+)\. \S+last\.ckpt is of step \1;", log.read_text())[1]
    )
    assert 1 <= step < STEPS
    status, printed = torchruns.run(words(tiny_videos, tmp_path, "--ckpt_path=last"), tmp_path)
    assert status == 0, printed
    for rank in (0, 1):
        wanted = hooks_of(whole, rank)[0][1]
        (_, first), (begin, rest) = hooks_of(tmp_path, rank)
        assert (begin, steps_done(first), steps_done(rest)) == (step, list(range(step)), list(range(step, STEPS)))
        assert without_saves(first) == without_saves(wanted)[: len(without_saves(first))]
        assert_resumes_like(without_saves(rest), without_saves(wanted[wanted.index(f"save {step}") :]), 0)
    assert_equal_end(tmp_path, whole)


def wait_for(condition, process, log):
    deadline = time.monotonic() + 120
    while process.is_alive() and not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


# ---- kills -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_process_is_killed_at_any_moment(tiny_videos, tmp_path, whole):
    """torchrun, a rank or a loader's worker: nobody outlives them, and the run resumes at its checkpoint's step."""
    rng, log = random.Random(0), tmp_path / "log.txt"
    killed, number, finished = {"torchrun": 0, "rank": 0, "worker": 0}, 0, []
    while sum(killed.values()) < KILLS:
        number += 1
        here = tmp_path / str(number)
        here.mkdir()
        log, status = here / "log.txt", None
        while status != 0:
            rarest = min(killed.values())
            who = rng.choice([k for k, n in killed.items() if n == rarest]) if sum(killed.values()) < KILLS else None
            process = torchruns.start(words(tiny_videos, here, "--ckpt_path=last", pause=0.03), here, log)
            if who is not None and kill_one(process, who, here, rng, log):
                killed[who] += 1
            status = wait_for_all(process, log)
        finished.append(here)
    assert number <= KILLS, "it ended before it could be killed"
    for here in finished:
        assert_equal_end(here, whole)
        for rank in (0, 1):
            wanted, starts = hooks_of(whole, rank)[0][1], hooks_of(here, rank)
            for first, lines in starts:
                assert_resumes_like(lines, wanted, first)
        told = [int(n) for n in re.findall(r"checkpoint: \S+ \(step (\d+)\)", (here / "log.txt").read_text())]
        begun = iter(told)  # a kill may come between the word of a resume and its first hook
        assert all(first in begun for first, _ in starts if first > 0)
    sys.stdout.write(f"killed: {killed}, in {number} trainings\n")


def kill_one(process, who, here, rng, log):
    """Kill one process of a kind after some more hooks: whether it was there."""
    before = sum(len(lines_of(here / f"hooks-{rank}.txt")) for rank in (0, 1))
    wanted = rng.choice([0, rng.randint(1, 60)])  # also before the training's first hook
    wait_for(lambda: sum(len(lines_of(here / f"hooks-{r}.txt")) for r in (0, 1)) >= before + wanted, process, log)
    time.sleep(rng.random() * (0.06 if wanted else 1.5))
    ranks = children(process.pid)
    workers = [worker for rank in ranks for worker in children(rank)]
    pids = {"torchrun": [process.pid], "rank": ranks, "worker": workers}[who]
    if not pids or not process.is_alive():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(pids), signal.SIGKILL)
        return True
    return False


def wait_for_all(process, log):
    """torchrun's exit status, once none of its processes is left."""
    everybody = set()
    deadline = time.monotonic() + 120
    while process.is_alive():
        everybody.update(torchruns.descendants(process.pid))
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    process.join()
    while any(torchruns.is_alive(pid) for pid in everybody):
        assert time.monotonic() < deadline, f"orphans: {everybody}\n{log.read_text()}"
        time.sleep(0.01)
    return process.exitcode


# ---- the parts ---------------------------------------------------------------------------------

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}


def test_sizes_are_torchruns():
    assert launch.from_torchrun(TORCHRUN) and not launch.from_torchrun({})
    for nodes, devices in ((1, "auto"), (2, 4), (1, "4"), (2, -1), (1, [0, 1, 2, 3])):
        assert launch.torchrun_sizes(num_nodes=nodes, devices=devices, environment=TORCHRUN) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        (
            {},
            {"num_nodes": 2, "devices": 2},
            r"trainer\.devices must be torchrun's --nproc_per_node \(4\), got 2\.",
        ),
        ({}, {"num_nodes": 4, "devices": 4}, r"trainer\.num_nodes must be torchrun's --nnodes \(2\), got 4\. Leave"),
        (
            {"WORLD_SIZE": "6"},
            {"num_nodes": 2, "devices": 4},
            "the same on each of the 2 nodes, got 4 on this one",
        ),
    ],
)
def test_other_sizes_are_refused(changes, sizes, message):
    with pytest.raises(ConfigError, match=message):
        launch.torchrun_sizes(**sizes, environment=TORCHRUN | changes)


ORPHAN = """
import os, sys, time
from video_gn.run.torchrun import ending_with_parent
if os.fork():
    time.sleep(0.3)
    os._exit(0)
os.setsid()
with ending_with_parent(poll_seconds=0.05, environment={environment!r}):
    print(os.getpid(), flush=True)
    time.sleep({seconds})
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("environment", "ends"), [(TORCHRUN, True), ({"LOCAL_RANK": "1"}, True), ({"LOCAL_RANK": "0"}, False), ({}, False)]
)
def test_a_process_ends_with_the_one_that_started_it(environment, ends):
    program = ORPHAN.format(environment=environment, seconds=60 if ends else 1)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert found.stdout.splitlines()[1:] == ([] if ends else ["done"])
