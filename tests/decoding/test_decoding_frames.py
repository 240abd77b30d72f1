"""Frame folders: a directory of numbered pictures reads as the video that they were taken from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media import decode_in_order, numbered_frame, read_numbers, write_numbered_video
from PIL import Image

from video_gn.decoding import open_video
from video_gn.decoding.frame_folders import FRAMES_FPS, frame_names, is_frame
from video_gn.errors import DecodeError


def write_frames(folder: Path, frames: list[np.ndarray], *, name: str = "img_{:05d}.png", start: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start):
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / name.format(number))
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_video(tmp_path_factory.mktemp("video") / "video.mp4", 20, fps=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "video", [numbered_frame(i) for i in range(5)])


def reason_of(path: Path, **options: str) -> str:
    with pytest.raises(DecodeError) as caught, open_video(path, **options) as reader:
        reader.frames_at(np.arange(reader.info.num_frames))
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason


@pytest.mark.parametrize(("name", "start"), [("img_{:05d}.png", 1), ("{:d}.PNG", 0), ("frame{:06d}.webp", 0)])
def test_pictures_without_loss_give_the_videos_frames(video: Path, tmp_path: Path, name: str, start: int) -> None:
    want = decode_in_order(video)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(want, start):
        Image.fromarray(frame).save(folder / name.format(number), **({"lossless": True} if "webp" in name else {}))
    with open_video(video) as of_video, open_video(folder) as reader:
        for indices in ([0], [3, 1, 1, 19, 3], list(range(20))):
            got = reader.frames_at(indices)
            np.testing.assert_array_equal(got.numpy(), np.stack([want[i] for i in indices]))
            np.testing.assert_array_equal(got.numpy(), of_video.frames_at(indices).numpy())
            assert got.is_contiguous()
        np.testing.assert_allclose(reader.frame_seconds, of_video.frame_seconds, atol=1e-9)
        ours, theirs = reader.info, of_video.info
    assert (ours.num_frames, ours.width, ours.height, ours.fps) == (20, 64, 48, FRAMES_FPS) == (
        theirs.num_frames, theirs.width, theirs.height, theirs.fps
    )  # fmt: skip
    assert (ours.codec, ours.rotation_degrees, ours.path) == ("frames", 0, str(folder))
    assert ours.duration_seconds == pytest.approx(20 / 30)


def test_each_picture_is_decoded_once_in_a_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Image.open

    def count(path: Path, **options: object) -> Image.Image:
        opened.append(path.name)
        return real(path, **options)

    with open_video(folder) as reader:
        monkeypatch.setattr(Image, "open", count)
        assert read_numbers(reader.frames_at([4, 2, 4, 2, 2]).numpy()) == [4, 2, 4, 2, 2]
    assert sorted(opened) == ["img_00003.png", "img_00005.png"]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("img_00001.jpg", True), ("image_1.jpeg", True), ("FRAME-000001.PNG", True), ("frame0001.webp", True),
        ("rgb_00001.jpg", True), ("77_000001.jpg", True), ("77-img_1.BMP", True), ("Clip 7_00001.tif", True),
        ("clip 7-frame_1.jpg", True), ("clip_7_00001.jpg", False), ("clip 7.jpg", False), ("thumb_1.jpg", False),
        ("00001.jpg", True), ("flow_x_00001.jpg", False), ("img_.jpg", False), ("img_00001.gif", False),
        ("._img_00001.jpg", False), ("a00001.jpg", False), ("00001.jpg.part", False), ("img_٣.jpg", False),
    ],
)  # fmt: skip
def test_which_names_count(name: str, want: bool) -> None:
    assert is_frame(name, "Clip 7") is want
    assert not is_frame(name, "flow_x") or want


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rgb_{:05d}.png", 1), ("77_{:06d}.png", 1), ("Video.v1_{:05d}.png", 0), ("video.V1-frame_{}.bmp", 99),
        ("img_{:05d}.tif", 100), ("{:05d}.tiff", 0), ("{}.BMP", 8),
    ],
)  # fmt: skip
def test_names_endings_and_first_numbers(tmp_path: Path, name: str, first: int) -> None:
    folder = tmp_path / "video.v1"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(numbered_frame(number)).save(folder / name.format(first + number))
    (folder / "thumb_1.jpg").touch()
    with open_video(folder) as reader:
        assert read_numbers(reader.frames_at(range(12)).numpy()) == list(range(12))


def test_usual_names_come_first(tmp_path: Path) -> None:
    write_frames(tmp_path, [numbered_frame(i) for i in range(3)])
    for name in ("rgb_00001.png", "7_00002.png", f"{tmp_path.name}_00001.png", "img_00001.bmp"):
        Image.fromarray(numbered_frame(99)).save(tmp_path / name)
    with open_video(tmp_path) as reader:
        assert read_numbers(reader.frames_at(range(3)).numpy()) == [0, 1, 2]


def test_other_files_are_passed_over_and_numbers_are_no_text(tmp_path: Path) -> None:
    # As text "10" comes before "9"; flow and thumbnails lie beside the frames.
    folder = write_frames(tmp_path / "v", [numbered_frame(i) for i in range(11)], name="{}.png")
    write_frames(folder, [numbered_frame(99)] * 2, name="flow_x_{:05d}.png")
    (folder / "notes.txt").write_text("x")
    with open_video(folder) as reader:
        assert read_numbers(reader.frames_at(range(11)).numpy()) == list(range(11))


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(numbered_frame(7, (8, 8)))
    grey = rgb.convert("L")
    # Few enough colors for a palette to hold them all.
    few = Image.fromarray(numbered_frame(7, (8, 8)) // 64 * 64)
    palette = few.quantize(256, dither=Image.Dither.NONE)
    colors = palette.convert("RGB")
    palette.info["transparency"] = bytes(range(256))
    clear = rgb.copy()
    clear.putalpha(10)
    for number, picture in enumerate((rgb, grey, palette, clear), 1):
        picture.save(tmp_path / f"{number}.png")
    with open_video(tmp_path) as reader:
        got = reader.frames_at(range(4)).numpy()
    want = [rgb, np.repeat(np.asarray(grey)[..., None], 3, axis=2), colors, rgb]
    np.testing.assert_array_equal(got, np.stack([np.asarray(w) for w in want]))


def test_rotation_in_a_picture_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(numbered_frame(3))
    picture.save(tmp_path / "0.png", exif=exif)
    with open_video(tmp_path) as reader:
        np.testing.assert_array_equal(reader.frames_at([0])[0].numpy(), np.asarray(picture))


def test_scaled_frames(tmp_path: Path) -> None:
    write_frames(tmp_path, [numbered_frame(i, (66, 48)) for i in range(3)])
    with open_video(tmp_path, short_side_px=24) as reader:
        assert (reader.info.height, reader.info.width) == (24, 32)
        assert read_numbers(reader.frames_at(range(3)).numpy()) == [0, 1, 2]
    with open_video(tmp_path, short_side_px=64) as reader:  # never up
        np.testing.assert_array_equal(reader.frames_at([1])[0].numpy(), numbered_frame(1, (66, 48)))


class TestErrors:
    def test_no_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").touch()
        assert reason_of(tmp_path).startswith("a directory, not a video file, and without numbered pictures (img_00001")

    @pytest.mark.parametrize("backend", ["pyav", "decord"])
    def test_another_back_end(self, folder: Path, backend: str) -> None:
        assert reason_of(folder, backend=backend) == (
            f"a directory, not a video file: only backend='auto' reads frame folders, not {backend!r}"
        )

    @pytest.mark.parametrize(
        ("names", "want"),
        [
            (["img_1.jpg", "img_2.jpg", "img_4.jpg"], "picture 3 is missing: img_4.jpg is the next of its 3 pictures"),
            (["img_00.jpg", "img_02.jpg"], "picture 1 is missing: img_02.jpg"),
            (["7.jpg", "9.jpg"], "picture 8 is missing: 9.jpg"),
            (["img_1.jpg", "img_01.png"], r"it has picture 1 twice \(img_01.png and img_1.jpg\)"),
            (["img_1.jpg", "frame_2.jpg"], r"it has pictures of two series \(frame_2.jpg and img_1.jpg\)"),
            (["x.jpg"], "without numbered pictures"),
        ],
    )
    def test_names_that_do_not_fit(self, names: list[str], want: str) -> None:
        with pytest.raises(DecodeError, match=rf"^some/dir: .*{want}"):
            frame_names("some/dir", names)

    def test_sizes_that_differ(self, folder: Path) -> None:
        Image.fromarray(numbered_frame(2, (64, 64))).save(folder / "img_00003.png")
        assert reason_of(folder) == ("its pictures differ in size: img_00001.png is 64 x 48, img_00003.png is 64 x 64")

    def test_damaged_pictures(self, folder: Path) -> None:
        path = folder / "img_00002.png"
        whole = path.read_bytes()
        for damaged, want in (
            (b"", "the picture img_00002.png cannot be read (it is no BMP, JPEG, PNG, TIFF or WebP)"),
            (b"<html>", "(it is no BMP, JPEG, PNG, TIFF or WebP)"),
            (whole[: len(whole) // 2], "the picture img_00002.png cannot be read (image file is truncated"),
            (whole[:60] + b"\0" * 40 + whole[100:], "the picture img_00002.png cannot be read ("),
        ):
            path.write_bytes(damaged)
            assert want in reason_of(folder)
        path.unlink()
        path.symlink_to(folder / "gone.png")
        assert reason_of(folder) == "the picture img_00002.png cannot be read (No such file or directory)"

    def test_damaged_jpeg(self, tmp_path: Path) -> None:
        Image.fromarray(numbered_frame(0)).save(tmp_path / "0.jpg")
        data = (tmp_path / "0.jpg").read_bytes()
        (tmp_path / "0.jpg").write_bytes(data[: len(data) * 2 // 3])
        assert "0.jpg cannot be read (image file is truncated" in reason_of(tmp_path)

    def test_16_bits(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "0.png")
        assert reason_of(tmp_path) == "0.png must have 8 bits for a color, got Pillow's mode I;16"

    def test_a_directory_that_cannot_be_listed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str) -> list[str]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.listdir", refuse)
        assert reason_of(folder) == "the directory cannot be listed (Permission denied)"

    def test_indices(self, folder: Path) -> None:
        with open_video(folder) as reader:
            with pytest.raises(IndexError, match=r"indices must be in \[0, 5\)"):
                reader.frames_at([5])
        with pytest.raises(ValueError, match="closed"):
            reader.frames_at([0])
