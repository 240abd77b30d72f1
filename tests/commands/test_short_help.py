"""The short help of fit, validate, test and predict against the parser that reads their options."""

import re

import yaml

from video_gn import __main__ as script
from video_gn.commands import run_help
from video_gn.commands._settings import config_parser
from video_gn.models.tables import DEFAULT_NUM_GROUPS

# Options that Lightning's command line adds to those of `config_parser`; and the network's own, by class.
_MORE = {"ckpt_path", "print_config", "help", "help_all"}
_NET = "model.net.init_args."


def test_every_option_exists_and_has_the_default_that_is_shown():
    """Numbers and lists; other defaults are said in words."""
    defaults = config_parser().get_defaults()
    compared = set()
    for command in run_help.USAGE:
        for action in run_help.short_help(command)._actions:
            name = action.option_strings[-1].removeprefix("--")
            if name in _MORE or name.startswith(_NET):
                continue
            default = defaults[name]  # KeyError: there is no such option
            shown = re.search(r"\(([^()]*)\)$", action.help)
            value = yaml.safe_load(shown[1]) if shown else None
            if isinstance(value, int | float | list):
                assert value == (list(default) if isinstance(value, list) else default), name
                compared.add(name)
            elif value == "32-true":
                assert default is None
    assert compared == {
        *("seed_everything", "data.batch_size", "data.clip.num_frames", "data.clip.stride", "data.augment.crop_px"),
        *("data.augment.short_side_px", "trainer.accumulate_grad_batches", "data.views.num_clips"),
    }
    assert any(f"({DEFAULT_NUM_GROUPS})" in text for _, _, text in run_help._TRAINING["network"])


def test_help_ends_with_where_the_rest_is(capsys):
    assert script.main(["fit", "-c", "missing.yaml", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("usage: video-gn fit -c CONFIG")
    assert printed.endswith("`--model.net.help video_gn.models.i3d` those of the network.")
