"""Display matrices and EXIF orientations: turned and mirrored as the ffmpeg command shows them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from decoding_cases import TORCHCODEC
from media import as_shown, decode_in_order, write_numbered_video
from mp4_boxes import set_matrix
from PIL import Image

from video_gn.decoding import open_video
from video_gn.errors import DecodeError

# EXIF's number: the matrix, how far a reader turns, and whether it mirrors before.
ORIENTATIONS = {
    1: ((1, 0, 0, 1), 0, False),
    2: ((-1, 0, 0, 1), 0, True),
    3: ((-1, 0, 0, -1), 180, False),
    4: ((1, 0, 0, -1), 180, True),
    5: ((0, 1, 1, 0), 270, True),
    6: ((0, 1, -1, 0), 90, False),
    7: ((0, -1, -1, 0), 90, True),
    8: ((0, -1, 1, 0), 270, False),
}


@pytest.mark.parametrize("number", ORIENTATIONS)
@pytest.mark.parametrize("backend", ["pyav", "decord", TORCHCODEC])
def test_matrices_of_containers(tmp_path: Path, number: int, backend: str) -> None:
    # decord fails at turned pictures that are 48 px wide.
    path = write_numbered_video(tmp_path / "a.mp4", 8, size=(64, 64 if backend == "decord" else 48))
    stored = decode_in_order(path)
    matrix, degrees, is_mirrored = ORIENTATIONS[number]
    set_matrix(path, matrix)
    if is_mirrored and backend != "pyav":
        with pytest.raises(DecodeError, match="it does not mirror frames, as this file asks"):
            open_video(path, backend)
        return
    with open_video(path, backend) as reader:
        assert (reader.info.rotation_degrees, reader.info.is_mirrored) == (degrees, is_mirrored)
        expected = np.stack([as_shown(frame, np.reshape(matrix, (2, 2))) for frame in stored])
        assert np.array_equal(reader.frames_at(range(8)).numpy(), expected)


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_exif_in_a_video_of_jpeg(tmp_path: Path, number: int) -> None:
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:10, :30], stored[30:, :10] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[0x112] = number
    picture = io.BytesIO()
    Image.fromarray(stored).save(picture, "JPEG", exif=exif, quality=95)
    path = tmp_path / "a.mjpeg"
    path.write_bytes(picture.getvalue() * 3)
    matrix, degrees, is_mirrored = ORIENTATIONS[number]
    with open_video(path) as reader:
        frame = reader.frames_at([1])[0].numpy().astype(int)
        assert (reader.info.rotation_degrees, reader.info.is_mirrored) == (degrees, is_mirrored)
    expected = as_shown(stored, np.reshape(matrix, (2, 2)))
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 3  # JPEG's loss


def test_other_angles_are_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 3, rotation=45)
    with open_video(path) as reader:
        assert (reader.info.rotation_degrees, reader.info.is_mirrored) == (0, False)
    assert "asks to be rotated by 45 degrees, which is not done" in caplog.text
