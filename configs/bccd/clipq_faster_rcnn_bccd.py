# Fine-tunes a trained faster_rcnn_mobilenetv2_bccd.py for int8, with ranges found on the data.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = ['./finetune_faster_rcnn_bccd.py', '../_base_/clipq.py']
