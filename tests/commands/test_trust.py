"""What comes with a run's directory is data, except for its config, which names code."""

import sys

import pytest
import torch
from small import ABOUT

from video_gn.__main__ import main
from video_gn.commands._settings import config_parser
from video_gn.errors import ConfigError
from video_gn.evaluation.predictor import Predictor
from video_gn.models import i3d


def test_a_config_is_the_only_file_of_a_run_that_is_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "names_code.py").write_text("class Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config, checkpoints = tmp_path / "run/config.yaml", tmp_path / "run/checkpoints"
    checkpoints.mkdir(parents=True)
    config.write_text("model:\n  net:\n    class_path: names_code.Net\n")
    net = i3d(50, norm="group", num_groups=2, width=4, num_classes=3)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"video_gn": {**ABOUT, "net": net.arguments}, "state_dict": state}, checkpoints / "best.ckpt")
    run = str(config.parent)
    assert main(["weights", "inspect", run]) == 0
    assert main(["weights", "convert", run, str(tmp_path / "a.safetensors")]) == 0
    assert main(["report", run]) == 0
    Predictor.from_checkpoint(run)
    assert "names_code" not in sys.modules
    with pytest.raises((ConfigError, SystemExit)):
        config_parser().parse_args(["-c", str(config)])
    assert "names_code" in sys.modules, "a config is trusted, and said to be"
