#!/usr/bin/env bash
# Every run behind docs/results/road.md, and its tables.
#
#     DATA=/path/to/data OUT=runs/tables JOBS=2 SEEDS=5 benchmarks/tables.sh
#
# The data are camvid/, kitti/, idd-lite/ and idd-lite-unlabelled/; extras [weights,report]. A
# finished run is kept and an interrupted one continues, so the same command goes on where it was
# stopped. The tables are written anew after each group, from whatever is finished: what matters
# most comes first. All of it takes days on two cores.
set -euo pipefail
here=$(dirname "$0") data=${DATA:-../shared/data} out=${OUT:-runs/tables} seeds=${SEEDS:-5}
pages=("$here/../docs/results/road.md" "$here/../README.md")
idd=(--target.root "$data/idd-lite" --target.classes "$data/idd-lite/road.yaml"
     --input.crop 224 --proximity.root "$data/idd-lite-unlabelled")
camvid=(--target.root "$data/camvid" --proximity.root "$data/kitti")
common=(--jobs "${JOBS:-2}" --evaluation.pictures 0)

group() {  # NAME FIELD... -- RECIPE...: the runs of one data set and protocol
    local name=$1 fields=() && shift
    while [ "$1" != -- ]; do fields+=("$1") && shift; done && shift
    spiritseg compare "$@" --out "$out/$name" "${fields[@]}" "${common[@]}"
    python "$here/tables.py" "$out" --pages "${pages[@]}"
}

wanted=(baseline sd esd finetune-long best)
others=(ct finetune-pretrained logits best-long best-fast best-scratch)
for recipes in wanted others; do
    declare -n these=$recipes
    for subset in first:64 even:64; do
        group "idd-${subset%:*}" "${idd[@]}" --target.subset "$subset" -- "${these[@]}" --seeds "$seeds"
        group "camvid-${subset%:*}" "${camvid[@]}" --target.subset "$subset" -- "${these[@]}" --seeds "$seeds"
    done
done
# The upper bound: all labels.
group idd-all "${idd[@]}" --target.subset all -- finetune-long --seeds 1
group camvid-all "${camvid[@]}" --target.subset all -- finetune-long --seeds 1
