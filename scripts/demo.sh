#!/usr/bin/env bash
# Train a Group Norm I3D on eight motions of shapes, test it with 10 clips of each video, label four videos.
# The same command resumes a stopped demo, and shows the results of a finished one. OUT=DIRECTORY runs another one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

OUT=${OUT:-runs/demo}
show_results() {
    echo
    echo "accuracies   $OUT/test/metrics.json"
    echo "predictions  $OUT/test/predictions.csv"
    echo "report       $OUT/report.html"
    echo "checkpoint   $OUT/checkpoints/best.ckpt"
    echo "labels       $OUT/labels.json"
}

# The last file that a demo writes.
if [ -e "$OUT/labels.json" ]; then
    echo "== $OUT holds a finished demo. To run it again: rm -r $OUT"
    show_results
    exit
fi
trap '[ $? -eq 0 ] || echo "== stopped; the same command resumes from here" >&2' EXIT

echo "== 1/4 920 videos of moving shapes (class = motion alone)"
video-gn data synth "$OUT/videos" --train_per_class 100 --val_per_class 15
echo "== 2/4 training on 800 of them"
video-gn fit -c configs/demo.yaml --data.train "$OUT/videos" --run_dir "$OUT" --ckpt_path last
echo "== 3/4 test on the 120 held out, 10 clips each"
video-gn test --run_dir "$OUT"
echo "== 4/4 labels of four of them"
video-gn infer "$OUT"/videos/val/clockwise/*0.mp4 "$OUT"/videos/val/growing/*0.mp4 \
    --checkpoint "$OUT" --output "$OUT/labels.json"
show_results
