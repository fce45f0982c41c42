# Stock Mask R-CNN on COCO, fine-tuned for int8.
# Start it at a trained stock Mask R-CNN: --cfg-options load_from=CHECKPOINT
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/clipq.py']

optim_wrapper = dict(optimizer=dict(lr=5e-3))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=5e-5),
]
train_cfg = dict(max_epochs=6, val_interval=3)
