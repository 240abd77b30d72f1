"""Writes a generated video and decodes it in order, the oracle; once for each test file."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from decoding_cases import CASES, NUM_FRAMES
from media import decode_in_order, write_numbered_video


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("generated")

    @cache
    def write(name: str) -> tuple[Path, list[np.ndarray]]:
        case = next(case for case in CASES if case.name == name)
        path = write_numbered_video(folder / name, NUM_FRAMES, **case.kwargs)
        return path, decode_in_order(f"file:{path}")

    return write
