"""Parser of a command's options: no abbreviations, and each error in a line that says what may have been meant.

Also the options that `infer` and `explain` share: the network, and the views of a video that it labels.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import video_gn
from video_gn.checks import did_you_mean, nearest, positive
from video_gn.errors import ConfigError
from video_gn.models import LAYOUTS

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor

# What Python calls a type -> what we call it.
TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}
# What argparse says of an option -> what we say.
_REWORDED = (
    (r"argument (\S+): expected .+", r"\1 must have a value, got none."),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 must not stand with \2. Leave one of them out."),
    (r"argument (\S+): (.+)", r"\1 \2."),
    (r"the following arguments are required: (.+)", r"\1 must be given, got none."),
)


class Options(argparse.ArgumentParser):
    """argparse's parser; its errors are ConfigErrors.

    With `takes_settings`, words that are no options are settings, as of fit, for another parser to read.
    """

    words: Sequence[str] = ()

    def __init__(self, *, takes_settings: bool = False, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self.takes_settings = takes_settings

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; keeps the words for `error`."""
        self.words = args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError. A misspelled option is named before what is missing because of it."""
        called = self.called()
        see = f"See `{called.prog} --help`."
        known = called.names()
        if message.startswith("unrecognized arguments: "):
            raise ConfigError(f"{unknown_option(message.split()[2], known)} {see}")
        if message.startswith("the following") and not self.takes_settings:
            for word in self.words:
                if word.startswith("--") and word.partition("=")[0] not in known:
                    raise ConfigError(f"{unknown_option(word, known)} {see}")
        if choice := re.fullmatch(r"argument (\S+): invalid choice: '(.+)' \(choose from (.+)\)", message):
            choices = choice[3].replace("'", "")
            question = did_you_mean(choice[2], choices.split(", ")) or see
            raise ConfigError(f"{choice[1]} must be one of {choices}, got {choice[2]!r}. {question}")
        if value := re.fullmatch(r"argument (\S+): invalid (\w+) value: (.+)", message):
            raise ConfigError(f"{value[1]} must be {TYPES.get(value[2], value[2])}, got {value[3]}. {see}")
        for pattern, ours in _REWORDED:
            if re.fullmatch(pattern, message, re.DOTALL):
                raise ConfigError(f"{re.sub(pattern, ours, message, count=1, flags=re.DOTALL)} {see}")
        raise ConfigError(f"{message}. {see}")

    def called(self) -> Options:
        """The parser of the subcommand that the words call; itself without one."""
        for action in self._actions:
            parsers = action.choices if isinstance(action.choices, dict) else {}
            for word in self.words:
                if isinstance(parsers.get(word), Options):
                    return parsers[word].called()
        return self

    def names(self) -> list[str]:
        """Names of its options."""
        return [name for action in self._actions for name in action.option_strings]


def unknown_option(word: str, known: Iterable[str]) -> str:
    """Sentences about a word of a command line that is no option: the nearest ones, or how they are written."""
    names = [name.lstrip("-") for name in known if name.startswith("--")]
    name, equals, _ = word.partition("=")
    if word.startswith("-"):
        return f"there is no option {name}. {did_you_mean(name.lstrip('-'), names, '--{}')}".rstrip()
    if Path(word).suffix in (".yaml", ".yml"):
        return f"{word!r} stands alone. Did you mean -c {word}?"
    if equals and name in names:
        return f"{word!r} stands alone. Did you mean --{word}?"
    return f"{word!r} stands alone. Options are written --NAME VALUE."


# ---- configs -------------------------------------------------------------------------------------


def known_configs(*, of_study: bool = False) -> list[Path]:
    """Configs of trainings, or of studies: in ./configs, or else in the repository that holds this package."""
    for top in (Path("configs"), Path(video_gn.__file__).parent.parent / "configs"):
        found = [p for p in top.rglob("*.yaml") if ("study" in p.relative_to(top).parts) == of_study]
        if found:
            return sorted(found, key=lambda path: (len(path.parts), path))
    return []


def list_of_configs(*, of_study: bool = False) -> str:
    """A line for each known config, with the beginning of its first comment."""
    known = known_configs(of_study=of_study)
    width = max((len(str(path)) for path in known), default=0)
    left = max(20, shutil.get_terminal_size().columns - width - 5)
    lines = []
    for path in known:
        comment = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"  {path!s:{width}s}  {textwrap.shorten(comment, left, placeholder=' ...')}")
    return "\n".join(lines)


def missing_config(path: str, *, of_study: bool = False) -> str:
    """Sentences about a config that is not there: near ones in its directory or among the known ones, or all."""
    wanted = Path(path)
    directory = wanted if wanted.is_dir() else wanted.parent
    by_name: dict[str, Path] = {}
    for found in (*sorted(directory.glob("*.y*ml")), *known_configs(of_study=of_study)):
        by_name.setdefault(found.stem, found)
    near = [str(by_name[stem]) for stem in nearest(wanted.stem, by_name)]
    advice = f"Did you mean {' or '.join(near)}?" if near else f"There are\n{list_of_configs(of_study=of_study)}"
    return f"{path} {'is a directory, no config' if wanted.is_dir() else 'is not there'}. {advice}"


# ---- a network that labels videos ----------------------------------------------------------------


def add_network_options(parser: Options) -> None:
    """Add the options of a checkpoint, the views of a video, the decoder and the device."""
    parser.add_argument(
        "--checkpoint",
        "--ckpt_path",
        metavar="PATH",
        help="run directory (its best checkpoint), checkpoint, any zoo's weights, hf:OWNER/NAME or exported .onnx",
    )
    add_view_options(parser)
    parser.add_argument("--backend", default="auto", help="decoder: auto, pyav, decord or torchcodec (auto)")
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, ... (a GPU if there is one)")


def add_view_options(parser: Options) -> None:
    """Add the options of class names, layout, and the views of a video."""
    parser.add_argument("--labels", metavar="FILE", help="class names: one a line, or json (the checkpoint's own)")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="layout, if a zoo's file does not say (nonlocal)")
    parser.add_argument(
        "--num_clips", type=positive, metavar="K", help="clips of a video (as the checkpoint was tested)"
    )
    parser.add_argument(
        "--crops", choices=("center", "three", "full"), help="crops of a clip (as the checkpoint was tested)"
    )


def check_auto_or(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse an option that is neither auto nor one of the known values."""
    if value not in ("auto", *known):
        advice = did_you_mean(value, known) or "Choose one of these."
        raise ConfigError(f"--{name} must be auto, {', '.join(known)}, got {value!r}. {advice}")


def check_network_options(options: argparse.Namespace) -> None:
    """Refuse to go on without a checkpoint, and with a decoder or a device that is not there."""
    import torch

    from video_gn.decoding import BACKENDS

    if not options.checkpoint:
        raise ConfigError(
            "--checkpoint must be given, got none. Name a run's directory, a checkpoint or any zoo's weights."
        )
    check_auto_or("backend", options.backend, BACKENDS)
    try:
        torch.empty(0, device="cpu" if options.device == "auto" else options.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {options.device!r} cannot be used: {str(error).splitlines()[0]}") from error


def picked(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options by name, as arguments of what a command calls."""
    return {name: getattr(options, name) for name in names}


def labels_of(options: argparse.Namespace) -> Sequence[str]:
    """Class names in the file of --labels; none without it."""
    from video_gn.lists.class_names import read_classes

    return read_classes(options.labels) if options.labels else ()


def load_predictor(options: argparse.Namespace) -> Predictor:
    """Load the network that the options name."""
    from video_gn.evaluation.predictor import Predictor
    from video_gn.run.memory import keep_freed_memory

    settings = picked(options, "device", "num_clips", "crops", "layout")
    engine = getattr(options, "engine", None)
    predictor = Predictor.from_checkpoint(options.checkpoint, labels=labels_of(options), engine=engine, **settings)
    if predictor.device.type == "cpu":
        keep_freed_memory()
    return predictor
