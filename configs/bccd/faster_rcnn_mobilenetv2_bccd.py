# Stock Faster R-CNN with FPN on the BCCD blood-cell images, from scratch, on MobileNetV2, which
# learns this data set on two CPU cores in minutes. Half as many channels in neck and heads and a
# quarter of the sampled regions as with R50; anchors from 20 pixels on.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './_base_/bccd.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        act_cfg=dict(type='ReLU6'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[5])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)

train_cfg = dict(max_epochs=24, val_interval=8)
default_hooks = dict(checkpoint=dict(interval=8))
