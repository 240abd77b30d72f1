import json

from video_gn.bench.weights import bench_weights, format_page


def test_the_page_and_the_figures():
    found = bench_weights(rounds=1, width=4)
    page = format_page(found)
    assert json.loads(json.dumps(found)) == found
    assert set(found["files"]) == {"pytorchvideo .pyth", "safetensors", "Caffe2 .pkl", "torchvision .pth, inflated"}
    for name, figures in found["files"].items():
        assert name in page
        assert figures["ratio"] == figures["ours"]["median_ms"] / figures["plain"]["median_ms"]
        assert figures["file_mb"] > 0.4
        assert set(figures["memory"]) == {"ours", "plain"}
