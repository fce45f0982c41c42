# The float control of clipq_faster_rcnn_digits.py: the same short schedule without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './faster_rcnn_mobilenetv2_digits.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
