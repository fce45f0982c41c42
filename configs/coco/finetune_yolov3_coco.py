# The float control of clipq_yolov3_coco.py: the same 12 epochs without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './yolov3_d53_coco.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=12, val_interval=3)
