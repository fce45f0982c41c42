# Stock FCOS on COCO, fine-tuned for int8.
# Start it at a trained stock FCOS: --cfg-options load_from=CHECKPOINT
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/clipq.py']

optim_wrapper = dict(optimizer=dict(lr=2.5e-3))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=2.5e-5),
]
train_cfg = dict(max_epochs=6, val_interval=3)
