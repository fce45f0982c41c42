# Fine-tunes a trained yolov3_mobilenetv2_digits.py for a small int8 file.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = ['./finetune_yolov3_digits.py', '../_base_/clipq_small.py']
