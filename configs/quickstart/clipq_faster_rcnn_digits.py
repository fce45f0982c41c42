# Fine-tunes a trained faster_rcnn_mobilenetv2_digits.py for int8.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = ['./finetune_faster_rcnn_digits.py', '../_base_/clipq.py']
