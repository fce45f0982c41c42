# The same with the paper's fixed ranges.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './clipq_yolov3_bccd.py'

clipq = dict(input_range=8.0, weight_range=0.125, int8=dict(offsets=False))
