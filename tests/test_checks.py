"""Checks of settings name the setting, the value and the rule."""

import argparse

import numpy as np
import pytest

from video_gn.checks import check_choice, check_integer, check_range, did_you_mean, nearest, not_negative, positive


@pytest.mark.parametrize("value", [1, 7, np.int32(3), np.uint8(255)])
def test_integers_of_any_kind(value):
    checked = check_integer("n", value)
    assert checked == value and type(checked) is int


@pytest.mark.parametrize("value", [2.0, "2", True, None, np.float64(3), np.bool_(True), [1]])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=r"^n must be an integer, got "):
        check_integer("n", value)


def test_the_least():
    assert [check_integer("n", value, least=value) for value in (-2, 0, 3)] == [-2, 0, 3]
    with pytest.raises(ValueError, match="^n must be at least 1, got 0$"):
        check_integer("n", 0)
    with pytest.raises(ValueError, match="^seed must be at least 0, got -1$"):
        check_integer("seed", -1, least=0)


def test_choices_and_ranges():
    check_choice("norm", "group", {"group": 1, "batch": 2})
    with pytest.raises(ValueError, match=r"norm must be one of \['batch', 'group'\], got 'x'. Choose one of these."):
        check_choice("norm", "x", {"group": 1, "batch": 2})
    check_range("p", 0.5, True, "in [0, 1]", "Lower it.")
    for value, inside in ((2.0, False), (float("nan"), True), (float("inf"), True)):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got .*\. Lower it\."):
            check_range("p", value, inside, "in [0, 1]", "Lower it.")


def test_words_of_a_command_line():
    assert (positive("1"), not_negative("0")) == (1, 0)
    with pytest.raises(argparse.ArgumentTypeError, match="must be at least 1, got 0"):
        positive("0")
    with pytest.raises(argparse.ArgumentTypeError, match="must be at least 0, got -1"):
        not_negative("-1")
    with pytest.raises(argparse.ArgumentTypeError, match="must be an integer, got 'x'"):
        positive("x")


SETTINGS = ["data.batch_size", "data.train", "data.clip.num_frames", "run_dir", "trainer.max_epochs", "trainer.devices"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("batch_size", "data.batch_size"),  # its last part alone
        ("data.batch", "data.batch_size"),  # short for it
        ("epochs", "trainer.max_epochs"),  # a part of a name
        ("run-dir", "run_dir"),
        ("Run_Dir", "run_dir"),
        ("data.trian", "data.train"),
        ("modle.net.num_frame", "data.clip.num_frames"),
        ("trainer.gpus", None),  # a common beginning says nothing
        ("x", None),
    ],
)
def test_the_nearest_setting(wrong, right):
    assert nearest(wrong, SETTINGS) == ([] if right is None else [right])
    assert did_you_mean(wrong, SETTINGS, "--{}") == ("" if right is None else f"Did you mean --{right}?")


def test_several_are_as_near():
    known = ["data.views.short_side_px", "data.augment.short_side_px", "data.augment.crop_px"]
    assert nearest("short_side_px", known) == known[:2]
    with pytest.raises(ValueError, match=r"got 'gruop'. Did you mean group\?"):
        check_choice("norm", "gruop", ("group", "batch"))
