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
    here=("${common[@]}" --out "$out/${subset%%:*}" --target.subset "$subset")
    spiritseg compare finetune-pretrained finetune-long --seeds 10 "${here[@]}"
    spiritseg compare best best-long best-fast best-scratch --seeds 5 "${here[@]}"
    spiritseg compare best "$out/best-dashcam.yaml" --seeds 5 "${here[@]}" \
        --best-dashcam.proximity.root "$data/kitti" "$data/camvid/train"
    spiritseg compare "$out/fast-alone.yaml" --seeds 3 "${here[@]}"
    spiritseg report "$out/${subset%%:*}" --baseline finetune-long
done
spiritseg compare baseline sd --seeds 5 "${common[@]}" --out "$out/lite" "${lite[@]}"

# One ingredient at a time, by files of a few lines.
spiritseg compare "$(dirname "$0")"/ablation/*.yaml esd --seeds 2 "${common[@]}" --out "$out/ablation"

# The opponent at its best: steps, rate, colours, averaged weights. Chosen on val.
opponent() {
    name=$1; shift
    spiritseg compare finetune-pretrained --seeds 3 "${common[@]}" --out "$out/opponent-$name" "$@"
}
opponent 600 --stages.supervised.max_steps 600
opponent lr1 --stages.supervised.optimizer.lr 1e-3
opponent lr4 --stages.supervised.optimizer.lr 4e-3
opponent jitter --stages.supervised.jitter 0.8
opponent average --stages.supervised.average 0.99
python "$(dirname "$0")/each_seed.py" "$out/ablation" "$out"/opponent-*
