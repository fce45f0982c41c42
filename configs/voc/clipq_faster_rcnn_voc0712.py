# Fine-tunes a trained faster_rcnn_r50_fpn_voc0712.py for int8 with the paper's best ranges.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = ['./finetune_faster_rcnn_voc0712.py', '../_base_/clipq.py']

clipq = dict(input_range=8.0, weight_range=0.5, int8=dict(offsets=False))
