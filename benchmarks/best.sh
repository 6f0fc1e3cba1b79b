#!/usr/bin/env bash
# The recipe `best` and its variants against fine-tuning a pretrained network, on CamVid-64.
#
#     DATA=/path/to/data OUT=runs/best benchmarks/best.sh      # extras: [weights,report,deploy]
#
# The data are camvid/ and kitti/. A finished run is kept, so the same command continues an
# interrupted matrix.
set -euo pipefail
here=$(dirname "$0") data=${DATA:-../shared/data} out=${OUT:-runs/best}
common=(--jobs "${JOBS:-1}" --evaluation.pictures 0 --target.root "$data/camvid"
        --proximity.root "$data/kitti")
mkdir -p "$out"
# A user with a dashcam: all training images of the target, without labels.
echo "extends: best" > "$out/best-dashcam.yaml"
# best-fast's network, fine-tuned directly.
cat > "$out/fast-alone.yaml" <<'YAML'
extends: finetune-long
networks:
  student:
    extractor: {name: efficientnet_lite0, weights: pretrained, split: blocks.3}
    head: {name: student, channels: 48, convolution: separable}
YAML
# best-scratch's network without distillation, and with SD's.
lite=(--networks.student.extractor.name efficientnet_lite0 --networks.student.extractor.of null)

for subset in first:64 even:64; do
    matrix=("${common[@]}" --out "$out/${subset%%:*}" --target.subset "$subset")
    spiritseg compare baseline ct sd esd --seeds 5 "${matrix[@]}"
    spiritseg compare finetune-pretrained --seeds 20 "${matrix[@]}"
    spiritseg compare finetune-long best-long --seeds 10 "${matrix[@]}"
    spiritseg compare best best-fast best-scratch --seeds 5 "${matrix[@]}"
    spiritseg compare best "$out/best-dashcam.yaml" --seeds 5 "${matrix[@]}" \
        --best-dashcam.proximity.root "$data/kitti" "$data/camvid/train"
    spiritseg compare "$out/fast-alone.yaml" --seeds 3 "${matrix[@]}"
    spiritseg report "$out/${subset%%:*}" --baseline finetune-pretrained
    spiritseg report "$out/${subset%%:*}" --baseline finetune-long --out "$out/against-long"
done
spiritseg compare baseline sd --seeds 5 "${common[@]}" --out "$out/lite" "${lite[@]}"
spiritseg compare baseline sd finetune-pretrained best --labels 16 32 64 --seeds 3 "${common[@]}" \
    --out "$out/labels"
spiritseg report "$out/labels"
spiritseg compare finetune-long --labels all --seeds 1 "${common[@]}" --out "$out/all"
# One change at a time: ingredients of best, then the opponent's steps, rate, colours and average.
spiritseg compare "$here"/ablation/*.yaml esd --seeds 2 "${common[@]}" --out "$out/ablation"
spiritseg compare "$here"/opponent/*.yaml --seeds 3 "${common[@]}" --out "$out/opponent"

python "$here/front.py" "$out/first" "$out/even" --report "$out/front.md" --figure "$out/front.png"
python "$here/each_seed.py" "$out/first" "$out/even" --report "$out/seeds.md"
python "$here/each_seed.py" "$out/ablation" "$out/opponent" --report "$out/ablation.md"
python "$here/each_seed.py" "$out/first" "$out/even" --sequences --report "$out/sequences.md"
