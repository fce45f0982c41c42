#!/usr/bin/env bash
# The whole method on real pixels, nothing downloaded: makes a data set of handwritten digits on
# photographs, trains a stock detector, fine-tunes it with clipping, writes the int8 file, evaluates
# all of them and draws what they detect.
#
#   bash tools/quickstart.sh [--detector NAME] [--out DIR] [--fresh]
#
#   --detector NAME   yolov3 (default) or faster_rcnn
#   --out DIR         where data, checkpoints and results go (default: work_dirs/quickstart, with
#                     _faster_rcnn behind it for that detector)
#   --fresh           do every step again; by default finished steps are kept
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

detector=yolov3
out=
fresh=
while [ $# -gt 0 ]; do
    case $1 in
        --out) [ $# -gt 1 ] || fail '--out: found no folder after it, wanted one'; out=$2; shift ;;
        --detector)
            [ $# -gt 1 ] || fail '--detector: found no name after it, wanted yolov3 or faster_rcnn'
            detector=$2
            shift ;;
        --fresh) fresh=1 ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$root/tools/quickstart.sh"; exit 0 ;;
        *) fail "found argument '$1', wanted --detector NAME, --out DIR or --fresh" ;;
    esac
    shift
done
case $detector in
    yolov3) default=work_dirs/quickstart ;;
    faster_rcnn) default=work_dirs/quickstart_faster_rcnn ;;
    *) fail "--detector: found '$detector', wanted yolov3 or faster_rcnn" ;;
esac
out=${out:-$default}
trap 'echo; echo "interrupted; run the same command again to go on" >&2; exit 130' INT

mkdir -p "$out"
export DIGITS_ROOT=$out/data PYTHONWARNINGS=ignore
config=configs/quickstart
if [ -n "$fresh" ]; then rm -rf "$out"/{data,float,control,clipped}; fi

# train NAME CONFIG [CFG-OPTION ...]: train into $out/NAME unless that is done with this config.
train() {
    local name=$1 file=$2 folder=$out/$1 stamp
    shift 2
    stamp=$(cat configs/_base_/*.py $config/_base_/*.py $config/*$detector*.py \
        tools/make_digits.py tools/_digits.py | cksum)
    if [ "$(cat "$folder/done" 2>/dev/null)" = "$stamp" ]; then
        echo "$folder: trained already, kept"
        return
    fi
    rm -rf "$folder"
    mkdir -p "$folder"
    # mmengine prints a line every 25 iterations; the rest of what it prints goes to the log.
    python tools/train.py "$file" --work-dir "$folder" --cfg-options randomness.seed=0 "$@" \
        >"$folder/output.log" 2>&1 &
    local job=$!
    # A background job of a script ignores the interrupt key, so end it by another signal.
    trap 'kill -TERM $job 2>/dev/null; wait $job 2>/dev/null || true
        echo; echo "interrupted; run the same command again to go on" >&2; exit 130' INT TERM
    tail -n +1 -f --pid=$job "$folder/output.log" |
        grep --line-buffered -oE 'Epoch\((train|val)\) .*(loss: [0-9.]+|mAP_50: [0-9.]+)|mmclipq: .*' |
        sed -u -E 's/ +lr: .* loss:/  loss:/' || true
    wait $job || fail "training failed; the end of $folder/output.log says why"
    echo "$stamp" >"$folder/done"
}

say 'Making the data set'
python tools/make_digits.py --out "$DIGITS_ROOT"
say 'Training the stock detector in float'
train float $config/${detector}_mobilenetv2_digits.py
checkpoint=$(cat "$out/float/last_checkpoint")
say 'Fine-tuning it in float, as a control with the same budget'
train control $config/finetune_${detector}_digits.py "load_from=$checkpoint"
say 'Fine-tuning it with clipping and the Lq loss, then writing the int8 file'
train clipped $config/clipq_${detector}_digits.py "load_from=$checkpoint"
clipped=$(cat "$out/clipped/last_checkpoint")

say 'Evaluating float, clipped float and int8'
python tools/compare.py $config/clipq_${detector}_digits.py --float "$checkpoint" \
    --control "$(cat "$out/control/last_checkpoint")" --clipped "$clipped" \
    --int8 "${clipped%.pth}_int8.clipq" --picture "$out/detections.png" --json "$out/table.json" \
    2>"$out/compare.log" | grep -E '^\||^picture' || fail "evaluation failed, see $out/compare.log"
