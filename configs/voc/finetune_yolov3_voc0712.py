# The float control of clipq_yolov3_voc0712.py: the same 4 epochs of 3 passes without clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './yolov3_d53_voc0712.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
