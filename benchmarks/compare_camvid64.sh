#!/usr/bin/env bash
# Does distillation help on CamVid-64 with KITTI as the proximity domain? The essential cells
# first: all recipes on both protocols, then the ratios and the label counts on the first, then
# S with SD's wall time, and another teacher.
#
#     DATA=../shared/data OUT=runs/compare SEEDS=5 JOBS=1 benchmarks/compare_camvid64.sh
#     WEIGHTS=../shared/weights ...     # the VGG16 teacher too
#
# A finished run is kept, so the same command continues an interrupted matrix.
set -euo pipefail
data=${DATA:-../shared/data} out=${OUT:-runs/compare} seeds=${SEEDS:-5} jobs=${JOBS:-1}
common=(--seeds "$seeds" --jobs "$jobs" --evaluation.pictures 0
        --target.root "$data/camvid" --proximity.root "$data/kitti")

spiritseg compare baseline finetune-pretrained logits ct sd esd "${common[@]}" --out "$out"
spiritseg compare baseline finetune-pretrained logits ct sd esd "${common[@]}" --out "$out" \
    --target.subset even:64
spiritseg compare esd --ratios 10 5 3 1 0.5 0.2 0 "${common[@]}" --out "$out"
spiritseg compare baseline sd finetune-pretrained --labels 16 32 64 128 all "${common[@]}" --out "$out"
spiritseg report "$out"

spiritseg compare baseline "${common[@]}" --out "$out-same-time" --stages.supervised.max_steps 900
spiritseg compare baseline "${common[@]}" --out "$out-same-time" --stages.supervised.max_steps 900 \
    --target.subset even:64
if [ -n "${WEIGHTS:-}" ]; then
    spiritseg compare baseline ct sd esd "${common[@]}" --out "$out-vgg16" \
        --networks.teacher.extractor.name vgg16 \
        --networks.teacher.extractor.weights "$WEIGHTS/vgg16_hed_bsds500.safetensors"
    spiritseg report "$out-vgg16"
fi
