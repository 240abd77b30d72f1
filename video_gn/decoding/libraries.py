"""Imports decord and torchcodec so that both can be loaded in one process, with errors that say what to install."""

from __future__ import annotations

import ctypes
import importlib
import re
from typing import Any


def import_decord() -> Any:
    """The module `decord`, with its FFmpeg hidden from other libraries.

    Its loader makes the symbols of its libraries visible to all that are loaded later: torchcodec would call decord's
    FFmpeg in place of the system's, and crash.
    """
    visible = ctypes.RTLD_GLOBAL
    vars(ctypes)["RTLD_GLOBAL"] = ctypes.RTLD_LOCAL
    try:
        return importlib.import_module("decord")
    finally:
        vars(ctypes)["RTLD_GLOBAL"] = visible


def import_torchcodec() -> Any:
    """The module `torchcodec.decoders`, once FFmpeg's libraries are known to be there.

    Raises:
        ImportError: if they are missing, or cannot be loaded with this torch.
        ModuleNotFoundError: if torchcodec is not installed.
    """
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        # Later releases can be imported without FFmpeg, for pictures alone, and fail at the first video.
        loader = importlib.import_module("torchcodec._internally_replaced_utils")
        if hasattr(loader, "load_core_libraries"):
            loader.load_core_libraries()
    except (RuntimeError, OSError) as error:
        raise ImportError(_explain(str(error))) from error
    return decoders


def _explain(text: str) -> str:
    """Why torchcodec's libraries do not load, from its long report of one attempt for each FFmpeg version."""
    causes = re.findall(r"^\s*OSError: (?!Could not load this library)(.*)$", text, flags=re.MULTILINE)
    others = [cause for cause in causes if not re.search(r"\blib(av|sw)\w+\b.*cannot open shared object", cause)]
    if causes and not others:
        return (
            "backend='torchcodec' needs FFmpeg's shared libraries (libavcodec, libavformat, ...), and none of a "
            "version that torchcodec knows was found. Install FFmpeg (Debian, Ubuntu: apt-get install ffmpeg), or use "
            "backend='pyav', which brings its own."
        )
    first = others[0] if others else (text.strip().splitlines() or ["no reason given"])[0]
    return (
        f"backend='torchcodec' cannot load torchcodec's libraries ({first}). Install FFmpeg's shared libraries "
        "(Debian, Ubuntu: apt-get install ffmpeg) and the torchcodec that goes with this torch (pip install "
        "video-gn[torchcodec]), or use backend='pyav'."
    )
