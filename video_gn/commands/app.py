"""`video-gn app`: a page and a REST route that label videos with a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from video_gn.checks import not_negative, positive
from video_gn.commands._options import Options, add_view_options, check_network_options, load_predictor, picked
from video_gn.commands._terminal import set_up_logging
from video_gn.errors import ConfigError

log = logging.getLogger(__name__)


def main(command: str, words: Sequence[str]) -> int:
    """Parse the words and run the command; see `video_gn.__main__`."""
    options = _parser().parse_args(words)
    set_up_logging()
    for name in ("max_mb", "max_seconds"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name} must be above 0, got {getattr(options, name)!r}. Leave it out.")
    if find_spec("gradio") is None:
        raise ConfigError("gradio is not installed. Install it: pip install 'video-gn[app]'")
    check_network_options(options)

    from video_gn.app.answers import Answers
    from video_gn.app.server import listen, serve

    with listen(options.host, options.port) as listener:  # before the network is read
        answers = Answers(
            load_predictor(options),
            name=Path(options.checkpoint).resolve().name,
            **picked(options, "max_mb", "max_seconds", "top_k"),
        )
        if not options.host.startswith(("127.", "::1", "localhost")):
            log.warning("--host %s: whoever reaches it may use it, without a password", options.host)
        serve(answers, listener)
    return 0


def _parser() -> Options:
    parser = Options(
        prog="video-gn app",
        description="Open a page that labels videos: drop one, and see its labels, its timeline, and where the network "
        "looks. The same process answers POST /api/infer with infer's json.",
        epilog="Exit status: 2 for bad arguments or a port that is taken, else 128 + N for signal N, which ends it.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run directory, checkpoint, any zoo's weights or exported .onnx"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=not_negative, default=7860, help="port, 0 for any (7860)")
    parser.add_argument("--max_mb", type=float, default=200.0, metavar="MB", help="largest file (200)")
    parser.add_argument("--max_seconds", type=float, default=600.0, metavar="SECONDS", help="longest video (600)")
    parser.add_argument("--top_k", type=positive, default=5, metavar="K", help="labels of each video (5)")
    add_view_options(parser)
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--engine", metavar="NAME", help="torch; for an .onnx file onnxruntime or openvino")
    parser.set_defaults(backend="auto")
    return parser
