# The same with the backbone, neck and head of the stock YOLOv3-MobileNetV2, which learns this
# data set on two CPU cores in minutes.
_base_ = './yolov3_d53_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(2, 4, 6),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.1),
    ),
    neck=dict(in_channels=[320, 96, 32], out_channels=[96, 96, 96]),
    bbox_head=dict(in_channels=[96, 96, 96], out_channels=[96, 96, 96]),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=30, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=10))
