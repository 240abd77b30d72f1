"""Parser of the settings of `fit`, `validate`, `test` and `predict`.

Errors are in a line, with the config's file and line, and what may have been meant.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning import Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from video_gn.checks import did_you_mean
from video_gn.commands._options import TYPES, list_of_configs, missing_config, unknown_option
from video_gn.commands._trainer import PRECISIONS
from video_gn.damage import read_yaml_text
from video_gn.data.datamodule import VideoDataModule
from video_gn.errors import ConfigError
from video_gn.models import i3d, search_here
from video_gn.run.checkpoints import RunCheckpoint
from video_gn.training.averaging import AveragingConfig
from video_gn.training.ddp import DDPConfig
from video_gn.training.guard import NonFiniteGuard
from video_gn.training.module import VideoClassifier
from video_gn.training.precise_bn import PreciseBN
from video_gn.training.trackers import LOGGERS

_NET = "model.net."
# A network of one's own may have no default of num_classes: whatever it is, the data's number replaces it.
_NO_CLASSES, _SOME_CLASSES = "the following arguments are required: num_classes", f"--{_NET}num_classes="
# Words of other projects -> settings.
_ELSEWHERE = {
    "gpus": "trainer.devices",
    "learning_rate": "model.optimizer.lr",
    "pretrained": "model.weights",
    "resume": "ckpt_path",
    "output_dir": "run_dir",
    "work_dir": "run_dir",
    "crop_size": "data.augment.crop_px",
}
# Settings of Lightning's that have fewer choices here than their types.
_CHOICES = {"trainer.precision": PRECISIONS}
# Groups of options in the order in which the help has them, by the first part of their names; Lightning's come last.
_HELP_ORDER = ("", "data", "model", "checkpoint", "averaging", "precise_bn", "guard", "ddp", "trainer")


class _RefusedError(Exception):
    """jsonargparse's error, which it may raise in the directory of a config."""


class SettingsParser(LightningArgumentParser):
    """Lightning's parser without abbreviations; its errors are ConfigErrors, and its help begins with our settings.

    `also` are names of options that another parser has taken out of the words before.
    """

    def __init__(self, *args: Any, also: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        search_here()
        self.also = also

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """As jsonargparse's; words or configs that are not understood are ConfigErrors."""
        try:
            for config in _Error(self, args or ()).configs:
                _check_text(config)
            return super().parse_args(args, *rest, **kwargs)
        except _RefusedError as refused:
            if refused.args[0].endswith(_NO_CLASSES) and not any(word.startswith(_SOME_CLASSES) for word in args or ()):
                return self.parse_args([*args, f"{_SOME_CLASSES}1"], *rest, **kwargs)
            message, parser = refused.args
            raise ConfigError(_Error(parser, args).reworded(message)) from refused.__cause__

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse what was parsed, or, where jsonargparse tries one type after another, this type."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise _RefusedError(message, getattr(ex, "subcommand_parser", None) or self) from ex

    def add_method_arguments(self, *args: Any, **settings: Any) -> list[str]:
        """As jsonargparse's, for a method of the trainer: --ckpt_path means more here than in Lightning."""
        added: list[str] = super().add_method_arguments(*args, **settings)
        self._option_string_actions[
            "--ckpt_path"
        ].help = "Checkpoint to resume, or to test: best, last, or a file (fit: start afresh, the others: best)."
        self._action_groups[-1].title = "Checkpoint"
        return added

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help with Lightning's settings at its end."""

        def place(group: Any) -> int:
            names = [action.dest for action in group._group_actions]
            first = names[0].partition(".")[0] if names and "." in names[0] else names[0] if names else ""
            return _HELP_ORDER.index(first) if first in _HELP_ORDER else 0

        self._action_groups = sorted(self._action_groups, key=place)
        return super().format_help(*args, **kwargs)


class _Error:
    """What a parser of the settings says of words of a command line, in our words."""

    def __init__(self, parser: Any, words: Sequence[str]) -> None:
        self.parser = parser
        self.words = words
        configs = [b for a, b in itertools.pairwise(words) if a in ("-c", "--config")]
        configs += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        self.configs = [config for config in configs if ":" not in config]  # neither addresses nor settings themselves
        self.prog = parser.prog.replace(" [options]", "")
        self.see = f"See `{self.prog} --help`."

    def reworded(self, message: str) -> str:
        """The parser's message as a sentence or two, with the place of the setting and what may have been meant."""
        for config in self.configs:
            wrong = _wrong_config(config)
            if wrong:
                return wrong
        if message.startswith("unrecognized arguments: "):
            word = message.split()[2]
            return f"{self._elsewhere(word) or unknown_option(word, self._options())} {self.see}"
        if message.startswith("the following arguments are required: "):
            command = self.words[0]  # it is the parser of all commands that says so
            if self.configs:
                missing = message.rpartition(": ")[2].removeprefix(f"{command}.")
                return f"{missing} must be given, got none in {' and '.join(self.configs)}."
            run = "" if command == "fit" else "--run_dir of a training, or "
            return f"{command} must have a config, got none. Give {run}one with -c:\n{list_of_configs()}"
        if option := re.fullmatch(r"argument (\S+): expected .+", message):
            return f"{option[1]} must have a value, got none."
        if failed := re.match(r"Call to compute_fn of link .+? with args \(.*?\) failed: ", message):
            return message[failed.end() :]
        key, reason = _key_and_reason(message)
        if unknown := re.fullmatch(r"(?:Group '(.+)' d|Subcommand '.+' d)oes not accept option '(.+)'", reason):
            key, reason = ".".join(filter(None, unknown.groups())), ""
        elif unknown := re.fullmatch(r"Option '(.+)' is not accepted", reason):
            key, reason = ".".join(filter(None, (key, unknown[1]))), ""
        if reason:
            return f"{self._where(key)}{key}{_rule(reason, _CHOICES.get(key, ()))}" if key else reason
        known = [name.removeprefix("--") for name in self._options()]
        # Options are of the default network: another may lack one of that very name.
        question = "" if key in known else did_you_mean(key, known)
        return f"{self._where(key)}there is no setting {key}. {question} {self.see}".replace("  ", " ")

    def _elsewhere(self, word: str) -> str:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        return f"there is no option --{name}. Did you mean --{_ELSEWHERE[name]}?" if name in _ELSEWHERE else ""

    def _options(self) -> Iterator[str]:
        """Names of the settings, as options."""
        yield from self.parser.also
        for name, action in self.parser._option_string_actions.items():
            is_group = action.metavar == "CONFIG" and name != "--config"
            if name.startswith("--") and not name.endswith(("+", ".help")) and not is_group:
                yield name
        yield from (f"--{_NET}{name}" for name in inspect.signature(i3d).parameters)

    def _where(self, key: str) -> str:
        """`FILE:LINE: ` of a key that stands in a config, the last one that has it; "" for one of the command line."""
        short = key.replace(".init_args", "")
        if any(word.partition("=")[0].replace(".init_args", "") == f"--{short}" for word in self.words):
            return ""
        for config in reversed(self.configs):
            with Path(config).open(encoding="utf-8") as file:
                line = _line_of(yaml.compose(file), short.split("."))
            if line is not None:
                return f"{config}:{line}: "
        return ""


def _line_of(node: Any, parts: Sequence[str]) -> int | None:
    """Line of a nested key in a yaml file, from 1; `init_args` on its way are passed through."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == parts[0]:
            return key.start_mark.line + 1 if len(parts) == 1 else _line_of(value, parts[1:])
        if key.value == "init_args" and (line := _line_of(value, parts)) is not None:
            return line
    return None


def _check_text(path: str) -> None:
    """Raise ConfigError for a config that is no text, or no yaml: the parser's loader is not made for those."""
    if not Path(path).is_file():
        return  # the parser says what it is; a pipe can be read only once
    try:
        read_yaml_text(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not yaml: {' '.join(str(error).split())}") from error


def _wrong_config(path: str) -> str | None:
    """What is wrong with a config as a whole."""
    if not Path(path).is_file():
        return missing_config(path)
    content = yaml.safe_load(read_yaml_text(path))
    if not isinstance(content, dict):
        return f"{path} must hold settings, KEY: VALUE, got {type(content).__name__}."
    if {"base", "norms"} <= set(content):
        return f"{path} must be a config of a run, got a study. Run it with `video-gn study -c {path}`."
    return None


# ---- jsonargparse's messages ---------------------------------------------------------------------


def _key_and_reason(message: str) -> tuple[str, str]:
    """The setting of a message, "" if it names none, and what it says of it."""
    keys, rest = [], []
    for line in message.splitlines():
        text = line.strip()
        if found := re.match(r'Parser key "(.+?)":', text):
            keys.append(found[1])
            text = text[found.end() :].strip()
        if text and not re.fullmatch(r"Problem with given class_path '.+':", text):
            rest.append(text)
    return ".".join(keys), " ".join(rest)


def _rule(reason: str, own: Sequence[str] = ()) -> str:
    """A reason in our words, to follow the setting's name: " must be an integer, got 'x'.".

    `own` are the setting's choices if they are fewer than its type has.
    """
    if found := re.search(r"Expected a dot import path string: (\S+)|has no attribute '(\S+)'", reason):
        value = found[1] or found[2]
        question = did_you_mean(value, [*callbacks.__all__, *LOGGERS, "video_gn.models.i3d"])
        return f" must be the import path of a class, got {value!r}. {question}".rstrip()
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of Module", reason):
        return f" must be a class of torch.nn.Module, or a function annotated to return one, got {found[1]!r}."
    if found := re.search(r"Problem with given class_path '(.+?)': No module named '(.+?)'", reason):
        return f" must be the import path of a class, got {found[1]!r}: no module {found[2]} is here or installed."
    if found := re.match(r"Unable to load config '(.+?)'", reason):
        return f" must be a file with its settings, got {found[1]!r}. Or give them one by one."
    found = re.fullmatch(r"Expected a (.+?)\. Got value: ?(.*)", reason)
    found = found or re.search(r"Subtypes: \[(.+)\] Errors: .* Given value: (.*)", reason)
    if not found:
        return f": {reason}"
    if own:
        advice = did_you_mean(found[2], own) or "Choose one."
        return f" must be one of {', '.join(own)}, got {found[2]!r}. {advice}"
    rules, question = [], ""
    for choices, kind in re.findall(r"typing\.Literal\[(.+?)\]|(?:<class ')?([^', ]+)(?:'>)?(?:, |$)", found[1]):
        known = choices.replace("'", "").split(", ")
        rules.append(f"one of {', '.join(known)}" if choices else TYPES.get(kind, kind))
        question = question or (did_you_mean(found[2], known) if choices else "")
    return f" must be {' or '.join(rules)}, got {found[2]!r}. {question}".rstrip()


def config_parser(prog: str | None = None, *, also: Sequence[str] = ()) -> SettingsParser:
    """A parser of a fit's config and options, to read them without a run; `also` as `SettingsParser` has it."""
    parser = SettingsParser(prog=prog, also=also)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    add_run_arguments(parser)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_lightning_class_args(VideoClassifier, "model")
    parser.add_lightning_class_args(VideoDataModule, "data")
    parser.add_method_arguments(Trainer, "test", skip=set(LightningCLI.subcommands()["test"]))
    return parser


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of a run beside model, data and trainer."""
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="Directory of the run (default: runs/<the config's stem>)."
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_class_arguments(AveragingConfig, "averaging")
    parser.add_class_arguments(PreciseBN, "precise_bn")
    parser.add_class_arguments(NonFiniteGuard, "guard")
    parser.add_class_arguments(DDPConfig, "ddp")


def check_seed(value: bool | int) -> int:
    """A seed as an integer that every random number generator takes."""
    if not 0 <= value < 2**32:
        raise ConfigError(f"seed_everything must be in [0, 2**32), got {value}. The default is 0.")
    return int(value)
