# Stock Faster R-CNN R50-FPN on COCO, fine-tuned for int8 with the paper's fixed ranges.
# Start it at a trained stock Faster R-CNN, which fixed ranges need:
# --cfg-options load_from=CHECKPOINT
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/clipq.py']

clipq = dict(input_range=8.0, weight_range=0.5, int8=dict(offsets=False))

optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=5e-5),
]
train_cfg = dict(max_epochs=6, val_interval=3)
