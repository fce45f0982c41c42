# The float control of clipq_yolov3_bccd.py: the same short schedule without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './yolov3_mobilenetv2_bccd.py'

optim_wrapper = _base_.finetuning.optim_wrapper
param_scheduler = _base_.finetuning.param_scheduler
train_cfg = dict(max_epochs=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3))
