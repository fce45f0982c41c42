# The float control of clipq_faster_rcnn_digits.py: the same short schedule without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './faster_rcnn_mobilenetv2_digits.py'

optim_wrapper = _base_.finetuning.optim_wrapper
train_cfg = _base_.finetuning.train_cfg
default_hooks = _base_.finetuning.default_hooks
