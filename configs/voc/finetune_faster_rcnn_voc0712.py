# The float control of clipq_faster_rcnn_voc0712.py: the same 2 epochs of 3 passes without the clip
# layers. Start it at a trained checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './faster_rcnn_r50_fpn_voc0712.py'

param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=5e-5),
]
train_cfg = dict(max_epochs=2, val_interval=1)
