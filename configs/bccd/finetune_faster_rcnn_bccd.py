# The float control of clipq_faster_rcnn_bccd.py: the same short schedule without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './faster_rcnn_mobilenetv2_bccd.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
