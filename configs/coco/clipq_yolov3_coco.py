# Fine-tunes a trained yolov3_d53_coco.py for int8 with the paper's best ranges.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = ['./finetune_yolov3_coco.py', '../_base_/clipq.py']

clipq = dict(input_range=8.0, weight_range=0.125, int8=dict(offsets=False))
