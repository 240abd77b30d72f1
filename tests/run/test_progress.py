"""The progress of a run: what a terminal of 80 columns shows, and how long a run is said to take."""

import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from runs import TINY

from video_gn.models import I3D
from video_gn.run import progress
from video_gn.run.progress import RunLength, in_words


def on_a_terminal(words, cwd, *, columns):
    """What a command prints on a pseudo terminal, and its exit status."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "video_gn", *words]
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=side, stdout=side, stderr=side)
    os.close(side)
    printed, end = b"", time.monotonic() + 240
    while time.monotonic() < end:
        if select.select([main], [], [], 1)[0]:
            try:
                printed += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
    os.close(main)
    return process.wait(10), printed.decode(errors="replace")


def drawn_lines(printed):
    """Lines as they stood on the screen: cursor moves and erasures begin another one, and colours are left out."""
    lines = re.split(r"[\r\n]+|\x1b\[[0-9;]*[A-HJK]", printed)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines]


def test_the_bar_is_one_line_of_80_columns(tiny_videos, tmp_path):
    words = ["fit", *TINY, f"--data.train={tiny_videos}", f"--run_dir={tmp_path / 'run'}", "--trainer.max_epochs=3"]
    status, printed = on_a_terminal(words, tmp_path, columns=80)
    assert status == 0, printed
    lines = drawn_lines(printed)
    bars = [line for line in lines if line.startswith(("Epoch", "Validation"))]
    assert any(line.startswith("Epoch 3/3") for line in bars)
    assert max(map(len, bars)) <= 80, max(bars, key=len)
    # A bar that does not fit is broken into lines, which hold its parts alone.
    assert all(re.search(r"clips/s( loss [\d.]+( top1 [\d.]+)?)? *$", line) for line in bars), bars[-3:]
    assert any(re.search(r" left [\d.]+ clips/s loss \d\.\d{3} top1 \d\.\d{3}", line) for line in bars), bars[-3:]
    assert all("clips/s" not in line for line in lines if line not in bars)


# ---- how long a run takes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.213, "0.21 s"), (2.1, "2.1 s"), (9.7, "9.7 s"), (48.4, "48 s"), (840, "14 min"), (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations_have_units(seconds, words):
    assert in_words(seconds) == words


def trainer_of(*, batches=400, steps=5714, first_step=0, accumulate=1, device="cpu", width=16, frames=16, side=112):
    datamodule = SimpleNamespace(clip=SimpleNamespace(num_frames=frames), augment=SimpleNamespace(crop_px=side))
    trainer = SimpleNamespace(
        is_global_zero=True, num_training_batches=batches, estimated_stepping_batches=steps, global_step=first_step,
        accumulate_grad_batches=accumulate, datamodule=datamodule,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )  # fmt: skip
    return trainer, SimpleNamespace(net=Mock(spec=I3D, arguments={"width": width}))


def told(caplog, monkeypatch, seconds, **settings):
    """Log lines of a training whose batches take these seconds."""
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    caplog.set_level(logging.INFO, "video_gn")
    caplog.clear()
    trainer, module = trainer_of(**settings)
    callback = RunLength()
    callback.on_train_start(trainer, module)
    for index, duration in enumerate(seconds):
        clock[0] += duration
        callback.on_train_batch_end(trainer, module, None, None, index)
    return caplog.messages


def test_a_run_says_once_how_long_it_takes(caplog, monkeypatch):
    say = "2.1 s a step, 14 min an epoch, 3 h 20 min in all, without validations (the first batch took 9 s)"
    assert told(caplog, monkeypatch, [9, *[2.1] * 40]) == [say]
    rest = told(caplog, monkeypatch, [9, *[2.1] * 40], first_step=2857)
    assert rest == [say.replace("3 h 20 min in all", "1 h 40 min for the rest")]
    accumulated = told(caplog, monkeypatch, [9, *[2.1] * 40], accumulate=10)
    assert accumulated == [say.replace("2.1 s a step", "21 s a step").replace("3 h 20 min", "33 h 20 min")]
    assert told(caplog, monkeypatch, [80, 65], batches=float("inf"), steps=float("inf")) == [
        "65 s a step, without validations (the first batch took 80 s)"
    ]
    assert told(caplog, monkeypatch, [3, 0.1, 0.1, 0.1, 0.1]) == []  # over before it would help


def test_full_size_on_a_cpu_names_the_small_config(caplog, monkeypatch):
    full = {"width": 64, "frames": 32, "side": 224}
    (line,) = told(caplog, monkeypatch, [], **full)
    assert "width 64 and clips of 32 x 224 x 224 px" in line and "configs/finetune_small.yaml" in line
    assert len(told(caplog, monkeypatch, [], **full | {"frames": 64, "width": 48})) == 1
    assert told(caplog, monkeypatch, [], **full, device="cuda") == []
    assert told(caplog, monkeypatch, []) == []  # finetune_small.yaml's
