"""How the PyAV reader finds frames: seeks, pictures left out, frames that get lost, places to start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media import decode_in_order, read_number, read_numbers, write_numbered_video

from video_gn.decoding import open_video
from video_gn.decoding._pyav import PyAVReader
from video_gn.errors import DecodeError, FrameCountError


@pytest.mark.parametrize("name", ["b.mp4", "long_gop.mp4", "open_gop.mp4", "mpeg4_b.avi", "vp8.webm", "edit_list.mp4"])
def test_growing_chunks_decode_each_frame_at_most_once(write, name: str) -> None:
    with PyAVReader(str(write(name)[0])) as reader:
        wanted = range(1, reader.info.num_frames, 2)
        for first in range(0, len(wanted), 7):
            reader.frames_at(wanted[first : first + 7])
        assert reader.num_decoded <= reader.info.num_frames + 10 * (name == "edit_list.mp4")


def test_one_pass_over_the_union_of_clips(write) -> None:
    with PyAVReader(str(write("long_gop.mp4")[0])) as reader:
        clips = np.array([[(start + 2 * i) % 60 for i in range(16)] for start in (0, 10, 20, 30, 40)])
        frames = reader.frames_at(clips.reshape(-1))
        assert read_numbers(frames) == clips.reshape(-1).tolist()
        assert reader.num_decoded <= 60


def test_seeking_skips_work(write) -> None:
    with PyAVReader(str(write("b.mp4")[0])) as reader:
        first = reader.num_decoded
        assert first <= 2
        reader.frames_at([50])
        assert reader.num_decoded <= first + 12
        reader.frames_at([2, 26, 49])  # three groups of pictures out of five, each in part
        assert reader.num_decoded <= first + 12 + 24


def test_unwanted_pictures_that_no_other_needs_are_not_decoded(write) -> None:
    path, expected = write("b.mp4")
    with PyAVReader(str(path)) as reader:
        sparse = list(range(0, 60, 12))
        for indices in (sparse, [0, 1, 59], list(range(0, 60, 5))):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))
    with PyAVReader(str(write("long_gop.mp4")[0])) as reader:
        reader.frames_at([0, 59])
        # Two of three pictures are B-frames, and in a pyramid of two one of them is referred to by none.
        assert reader.num_decoded <= 45


def test_a_frame_left_out_before_is_there_when_asked_for_next(write) -> None:
    path, expected = write("long_gop.mp4")
    for first in range(16):
        for second in range(first + 1, first + 5):
            with PyAVReader(str(path)) as reader:
                reader.frames_at([first])
                frames = reader.frames_at([second, second + 1]).numpy()
                assert np.array_equal(frames[0], expected[second]) and np.array_equal(frames[1], expected[second + 1])
                assert reader.doubt is None and reader.num_decoded <= 60


def test_going_on_after_the_end_and_back(write) -> None:
    for name in ("b.mp4", "mpeg4_b.avi"):
        with open_video(write(name)[0]) as reader:
            assert [read_number(reader.frames_at([i])[0]) for i in (59, 59, 0, 59, 58)] == [59, 59, 0, 59, 58]


def test_an_index_that_leads_astray_is_given_up(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    path, expected = write("b.mp4")
    with PyAVReader(str(path)) as reader:
        monkeypatch.setattr(PacketDecoder, "seek", lambda self, row: False)
        for indices in ([50], [30, 59], [2]):
            frames = reader.frames_at(indices).numpy()
            assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))


def test_a_seek_that_lands_elsewhere_is_noticed(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding import _decoder

    path, _ = write("b.mp4")
    decoder = _decoder.PacketDecoder(str(path))
    assert decoder.seek(24) and decoder.next_row == 24
    decoder.table.sizes[24] += 1
    assert not decoder.seek(24)
    decoder.table.sizes[12] = decoder.table.sizes[13]
    assert decoder.seek(36)
    decoder.close()


@pytest.mark.parametrize("lost", [[17], [0], [40, 41], [59]])
def test_frames_that_get_lost_without_a_word(write, monkeypatch: pytest.MonkeyPatch, lost: list[int]) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    real = PacketDecoder.feed
    times = {512 * i for i in lost}  # mp4 counts in 1/12800 s here

    def feed(self, **kwargs):
        return [frame for frame in real(self, **kwargs) if frame.pts not in times]

    monkeypatch.setattr(PacketDecoder, "feed", feed)
    path, expected = write("long_gop.mp4")
    left = [frame for i, frame in enumerate(expected) if i not in lost]
    with PyAVReader(str(path)) as reader:
        if 0 in lost:  # known at once
            assert reader.info.num_frames == len(left)
        else:
            with pytest.raises(FrameCountError, match=f"only {len(left)} of 60 frames decode"):
                reader.frames_at(range(60))
        frames = reader.frames_at(range(len(left))).numpy()
        assert all(np.array_equal(a, b) for a, b in zip(frames, left, strict=True))
        assert np.array_equal(reader.frames_at([20])[0].numpy(), left[20])


def test_a_frame_that_nobody_wants_gets_lost(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from video_gn.decoding._decoder import PacketDecoder

    real = PacketDecoder.feed
    monkeypatch.setattr(PacketDecoder, "feed", lambda self, **kw: [f for f in real(self, **kw) if f.pts != 680])
    path, expected = write("vp9.webm")  # in milliseconds: frame 17
    with PyAVReader(str(path)) as reader:
        assert np.array_equal(reader.frames_at([12, 20])[1].numpy(), expected[21])
        assert reader.doubt == "its frames do not come in the order of their times"


def test_pictures_shown_before_a_restart_are_passed_over(write) -> None:
    from types import SimpleNamespace

    with PyAVReader(str(write("hevc_open_gop.mp4")[0])) as reader:
        reader.frames_at([30])
        assert (reader._first_index, reader._position) == (24, 30)
        time = int(np.sort(reader.table.pts)[23])
        reader._advance(SimpleNamespace(pts=time))  # type: ignore[arg-type]
        assert reader._position == 30


def test_no_restart_where_an_earlier_picture_is_shown_later() -> None:
    from video_gn.decoding._bitstream import PacketFacts
    from video_gn.decoding.probe import _find_restarts, _is_first_of_rest

    pts = np.array([0, 30, 10, 20, 60, 40, 50])
    key = np.array([True, False, True, False, True, False, False])
    facts = [PacketFacts(is_restart=True)] * 7
    shown = np.ones(7, dtype=bool)
    # Row 2 is shown before row 1. Row 4 is a restart, but rows 5 and 6 are shown before it.
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, False, False, True, False, False]
    assert _is_first_of_rest(pts, shown).tolist() == [True, False, True, True, False, True, True]
    # With row 1 hidden, nothing is shown after row 2 that lies before it.
    shown[1] = False
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, True, False, True, False, False]
    # A file that repeats its parameter sets: only rows that bring theirs.
    facts = [PacketFacts(is_restart=True, has_sets=i == 2, has_new_sets=i == 2) for i in range(7)]
    assert _find_restarts(pts, shown, key, facts).tolist() == [True, False, True, False, False, False, False]


def test_hidden_vp8_pictures_are_not_counted(tmp_path: Path) -> None:
    import av

    path = write_numbered_video(tmp_path / "hidden.webm", 24, codec="libvpx")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for i in (5, 17):
        at = data.index(packets[i])
        data[at] &= ~0x10  # show_frame
    path.write_bytes(data)
    expected = decode_in_order(path)
    shown = [i for i in range(24) if i not in (5, 17)]
    assert read_numbers(expected) == shown
    with PyAVReader(str(path)) as reader:
        assert reader.info.num_frames == 22 and reader.doubt is None
        for indices in ([21, 3, 5], [5], [14, 15, 16], list(range(22))):
            assert read_numbers(reader.frames_at(indices)) == [shown[i] for i in indices]
        assert reader.doubt is None
    with pytest.raises(DecodeError, match="packets of it show no frame"):
        open_video(path, "decord")
