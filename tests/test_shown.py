"""Names that would steer a terminal or be run by a spreadsheet, through every place that prints or writes a table."""

import csv
import io
import logging
import random
import re
import warnings
from types import SimpleNamespace

import pytest
import torch

from video_gn import __main__
from video_gn.commands import _terminal, infer
from video_gn.errors import ConfigError
from video_gn.evaluation.accuracy import MultiViewAccuracy
from video_gn.evaluation.results import write_predictions, write_results
from video_gn.labelling.running import Tally
from video_gn.prepare.prepare_summary import PrepareSummary
from video_gn.report.reading import read_predictions
from video_gn.shown import console, csv_cell, from_csv_cell, shown, shown_message, shown_text
from video_gn.study.collecting import _read_right
from video_gn.weights.report import LoadReport

STEERING = [
    "\x1b[2J", "\x1b]8;;http://a\x07b\x1b]8;;\x07", "\x1b]52;c;AAAA\x07", "\x07", "\r", "\b\b\b", "\x9b31m",
    "\x9d0;t\x9c", "\u202egpj.exe", "\u2066", "\u2028", "\x7f", "\x00", "\udcff", "\ud800", "\x85",
]  # fmt: skip
BAD = "".join(STEERING) + "\nvideo-gn: error: not mine"
# What a terminal may be sent by us: text, line ends, and rich's own colours.
_HARMLESS = re.compile(r"\x1b\[[0-9;]*m")


def assert_harmless(printed, *, forged=True):
    rest = _HARMLESS.sub("", printed)
    assert rest and not [c for c in rest if (not c.isprintable() and c != "\n") or "\u202a" <= c <= "\u2069"]
    assert not forged or "\nvideo-gn: error: not mine" not in rest
    printed.encode()


def test_every_steering_letter_is_spelled_out():
    assert shown("a\x1b[2Jb\u202ec\udcffd\ud800\n\t") == "a\\x1b[2Jb\\u202ec\\xffd\\ud800\\n\\t"
    assert shown_text("a\nb\tc\r") == "a\nb\tc\\x0d"
    assert shown_message("a\nb\n  c\n\nd") == "a\n  b\n  c\n\n  d"
    ordinary = "走路 é\u0301 שלום \u200dعربي 👩\u200d🔧 [red]x[/red] -x.mp4"
    assert shown(ordinary) == ordinary
    for text in STEERING:
        assert shown(text).isprintable(), text


def test_errors_log_lines_and_warnings(capsys, monkeypatch):
    def refuse():
        raise ConfigError(f"{BAD} must be there. There are\n  a.yaml\n  b.yaml")

    assert __main__._with_errors_in_a_line(refuse) == 2
    printed = capsys.readouterr().err
    assert_harmless(printed)
    assert printed.startswith("video-gn: error: \\x1b[2J") and "There are\n  a.yaml\n  b.yaml\n" in printed
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    log = logging.getLogger("video_gn")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(log, "level", log.level)
    _terminal.set_up_logging()
    log.warning("%s could not be read: %s", BAD, ValueError(BAD))
    assert_harmless(warnings.formatwarning(UserWarning(BAD), UserWarning, "f", 1) + capsys.readouterr().err)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_tables(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(infer, "console", lambda: console(force_terminal=is_terminal))
    top = [{"label": BAD + "[bold]", "score": 0.5}]
    clip = {"start_seconds": 0, "end_seconds": 1, "top": top}
    video = {"path": BAD, "num_frames": 5, "fps": 5.0, "top": top, "clips": [clip]}
    infer._print_table(
        SimpleNamespace(quiet=False), Tally(labelled=1, failed=1, shown=[video, {"path": BAD, "reason": BAD}])
    )
    _terminal.print_figures({"checkpoint": BAD})
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert "[bold]" in printed and "\\x1b]52;c" in "".join(printed.split("│")).replace(" ", "").replace("\n", "")
    report = LoadReport(BAD, BAD, "torch", BAD, BAD, 50, 9, None, entries=(), remaining=(), outside={BAD: BAD})
    _terminal.print_text(report.text(80))
    summary = PrepareSummary(*[BAD] * 3, 1, 1, 1, 0, 1, 1, failed=((BAD, BAD),))
    _terminal.print_text(summary.text())
    assert_harmless(capsys.readouterr().out, forged=False)


# ---- csv -----------------------------------------------------------------------------------------

NAMES = [
    "a.mp4", "-x.mp4", "+1", "-1", "-2.5e-3", "=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'",
    "'=1", "''=1", "'a", "'-", "＝1", "a,b", 'a"b', "", " =1", "-", "+1 (555)", "-1-2", "+1e", "\udcff", "1|=2", "−",
]  # fmt: skip
_RUN = re.compile(r"[=+\-@\t\r\n＝＋－＠]")


def test_cells_come_back_and_none_is_a_formula():
    letters = "'=+-@\t\r\n1e. a＝"
    generator = random.Random(0)
    drawn = ["".join(generator.choices(letters, k=generator.randrange(6))) for _ in range(3000)]
    for name in NAMES + drawn:
        cell = csv_cell(name)
        assert from_csv_cell(cell) == name
        if _RUN.match(cell):
            float(cell)  # numbers stay
            assert cell == name
        assert from_csv_cell(name) == name or name.startswith("'")  # tables of earlier versions


def test_tables_for_people_are_quoted_and_read_back(tmp_path):
    names = list(dict.fromkeys(NAMES))
    records = [SimpleNamespace(path=name) for name in names]
    count = len(names)
    metric, ids = MultiViewAccuracy(count), torch.arange(count)
    metric.update(ids, torch.full((count, count), 0.1 / count) + 0.9 * torch.eye(count), ids, 1)
    rows = metric.rows()
    classes = [name or "none" for name in names]
    write_predictions(tmp_path / "predictions.csv", rows, SimpleNamespace(records=records), classes)
    found = read_predictions(tmp_path / "predictions.csv")
    assert found.videos == names and found.num_correct == count and sorted(found.classes) == sorted(classes)
    assert _read_right(tmp_path / "predictions.csv") == dict.fromkeys(names, True)
    videos = [{"path": n, "top": [{"label": n, "score": 0.5}], "clips": []} for n in names]
    write_results(tmp_path / "labels.csv", videos, [{"path": n, "reason": n} for n in names])
    for name in ("predictions.csv", "labels.csv"):
        text = (tmp_path / name).read_bytes().decode("utf-8", "surrogateescape")
        cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        assert not [cell for cell in cells if _RUN.match(cell) and not re.fullmatch(r"[+-]?\d+(\.\d+)?(e-\d)?", cell)]
