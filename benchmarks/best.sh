#!/usr/bin/env bash
# The recipe `best` and its variants against fine-tuning a pretrained network, on CamVid-64.
#
#     DATA=../shared/data OUT=runs/best benchmarks/best.sh
#
# A finished run is kept, so the same command continues an interrupted matrix.
set -euo pipefail
data=${DATA:-../shared/data} out=${OUT:-runs/best}
common=(--jobs "${JOBS:-1}" --evaluation.pictures 0 --target.root "$data/camvid"
        --proximity.root "$data/kitti")
mkdir -p "$out"
# A user with a dashcam: the other training images of the target, without their labels.
echo "extends: best" > "$out/best-dashcam.yaml"

for subset in first:64 even:64; do
    here=("${common[@]}" --out "$out/${subset%%:*}" --target.subset "$subset")
    spiritseg compare finetune-pretrained best best-long --seeds 5 "${here[@]}"
    spiritseg compare best best-fast --seeds 3 "${here[@]}"
    spiritseg compare best esd best-scratch --seeds 2 "${here[@]}"
    spiritseg compare best "$out/best-dashcam.yaml" --seeds 2 "${here[@]}" \
        --best-dashcam.proximity.root "$data/kitti" "$data/camvid/train"
    spiritseg report "$out/${subset%%:*}" --baseline finetune-pretrained
done
