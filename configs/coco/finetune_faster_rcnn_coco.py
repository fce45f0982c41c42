# The float control of clipq_faster_rcnn_coco.py: the same 6 epochs without the clip layers.
# Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './faster_rcnn_r50_fpn_coco.py'

optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=5e-5),
]
train_cfg = dict(max_epochs=6, val_interval=3)
