# The same with the paper's fixed ranges.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './clipq_faster_rcnn_bccd.py'

clipq = dict(input_range=8.0, weight_range=0.5, int8=dict(offsets=False))
