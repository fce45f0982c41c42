# Stock YOLOv3-Darknet53 on COCO, fine-tuned for int8 with the paper's fixed ranges.
# Start it at a trained stock YOLOv3, which fixed ranges need: --cfg-options load_from=CHECKPOINT
_base_ = ['mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py', './_base_/clipq.py']

clipq = dict(input_range=8.0, weight_range=0.125, int8=dict(offsets=False))

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=12, val_interval=3)
