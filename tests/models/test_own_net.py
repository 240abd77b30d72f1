"""Networks of one's own: what an error of their own code adds, and where they are found."""

import sys

import pytest
import torch
from torch import nn

from video_gn.errors import ConfigError
from video_gn.models import OwnNet, find_network


def test_an_error_of_its_own_code_is_left_as_it_is_and_says_which_clips_it_got():
    net = OwnNet(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 8 * 8, 2)))
    assert net(torch.zeros(2, 3, 4, 8, 8)).shape == (2, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        net(torch.zeros(2, 3, 4, 9, 9))
    (note,) = raised.value.__notes__
    assert "Sequential was given clips (2, 3, 4, 9, 9). If it takes others alone, set data.clip.num_frames" in note


def test_a_network_is_found_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text("class MyNet:\n    pass\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("nets_of_mine.MyNet", "MyNet", "nets_of_mine.Other"):
        with pytest.raises(ConfigError, match=f"must be the import path of a class, got '{name}'"):
            find_network(name)
        if name == "nets_of_mine.MyNet":
            monkeypatch.chdir(tmp_path)
    assert find_network("nets_of_mine.MyNet").__module__ == "nets_of_mine"
