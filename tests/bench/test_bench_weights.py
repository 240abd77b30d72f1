import json

from video_gn.bench.weights import bench_weights


def test_the_page_and_the_figures(tmp_path, capsys):
    assert bench_weights(rounds=1, width=4, output=str(tmp_path / "sub/b.json")) == 0
    page = capsys.readouterr().out
    found = json.loads((tmp_path / "sub/b.json").read_text())
    assert set(found["files"]) == {"pytorchvideo .pyth", "safetensors", "Caffe2 .pkl", "torchvision .pth, inflated"}
    for name, figures in found["files"].items():
        assert name in page
        assert figures["ratio"] == figures["ours"]["median_ms"] / figures["plain"]["median_ms"]
        assert figures["file_mb"] > 0.4
        assert set(figures["memory"]) == {"ours", "plain"}
