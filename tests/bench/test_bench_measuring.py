import mmap
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from video_gn.bench import measuring
from video_gn.bench._video import write_typical_video


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []

    def contender(name, seconds):
        def run(number):
            calls.append((number, name))
            return seconds + number

        return run

    found = measuring.side_by_side({"a": contender("a", 10.0), "b": contender("b", 20.0)}, rounds=3)
    assert calls == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (3, "b"), (3, "a")]
    assert found == {"a": [11.0, 12.0, 13.0], "b": [21.0, 22.0, 23.0]}
    summary = measuring.summarize({"a": [0.003, 0.001, 0.002], "b": [0.004, 0.004, 0.1]})
    assert summary["a"] == pytest.approx({"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0})
    assert measuring.ratio_of_medians(summary, "a", "b") == pytest.approx(0.5)


def test_targets():
    assert measuring.verdict(0.25, at_most=0.25) == "target at most 0.25: met"
    assert measuring.verdict(0.26, at_most=0.25) == "target at most 0.25: missed"
    assert measuring.verdict(4.0, at_least=4.0) == "target at least 4: met"
    assert measuring.verdict(3.9, at_least=4.0) == "target at least 4: missed"


def test_resident_memory_is_seen():
    before = measuring.resident_bytes()
    block = np.frombuffer(mmap.mmap(-1, 50_000_000), dtype=np.uint8)  # new pages, not some that were freed before
    block[:] = 1
    after = measuring.resident_bytes()
    # The pages of the block, give or take what else the process does meanwhile.
    assert after - before > 40_000_000
    del block
    assert measuring.resident_bytes(peak=True) > before + 40_000_000


def test_the_typical_video_is_like_those_of_kinetics(tmp_path):
    path = tmp_path / "made.mp4"
    write_typical_video(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 340, 256)
        assert stream.average_rate == 30
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert len(packets) == 300
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 250]
    assert any(packet.pts != packet.dts for packet in packets)  # B-frames
    # Kinetics files of this size take between 400 and 1100 kbit/s.
    assert 400 < path.stat().st_size * 8 / 10 / 1000 < 1100


def test_the_machine_and_the_commit(tmp_path, monkeypatch):
    found = measuring.describe_machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        flags = set(cpuinfo.read_text().split())
        assert set(found["instructions"]) == flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    assert found["device"] == "cpu" and found["num_cores"] >= 1 and found["processor"]
    monkeypatch.setattr(measuring, "_ROOT", tmp_path)
    assert measuring.describe_machine()["commit"] is None

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    (tmp_path / "file").write_text("a")
    git("init", "-q")
    assert measuring.describe_machine()["commit"] is None  # there is none yet
    git("add", "file")
    git("commit", "-qm", "a")
    git("tag", "v1")
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert measuring.describe_machine()["commit"] == commit
    (tmp_path / "file").write_text("b")
    assert measuring.describe_machine()["commit"] == f"{commit}-dirty"
