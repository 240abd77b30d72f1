#!/usr/bin/env bash
# Train a Group Norm I3D on eight motions of shapes, test it with 10 clips of each video, label four videos.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

OUT=${OUT:-runs/demo}
echo "== 1/4 videos of moving shapes (class = motion alone)"
video-gn data synth "$OUT/videos" --train_per_class 100 --val_per_class 15
echo "== 2/4 training"
video-gn fit -c configs/demo.yaml --data.train "$OUT/videos" --run_dir "$OUT"
echo "== 3/4 test on held-out videos, 10 clips each"
video-gn test -c configs/demo.yaml --data.train "$OUT/videos" --run_dir "$OUT"
echo "== 4/4 labels of four of them"
video-gn infer "$OUT"/videos/val/clockwise/*0.mp4 "$OUT"/videos/val/growing/*0.mp4 \
    --checkpoint "$OUT/checkpoints/best.ckpt" --output "$OUT/labels.json"

echo
echo "accuracies   $OUT/test/metrics.json"
echo "predictions  $OUT/test/predictions.csv"
echo "report       $OUT/report.html"
echo "checkpoint   $OUT/checkpoints/best.ckpt"
echo "labels       $OUT/labels.json"
