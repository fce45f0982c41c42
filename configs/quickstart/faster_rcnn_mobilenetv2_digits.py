# Stock Faster R-CNN with FPN on the digits, from scratch in minutes on a CPU: a MobileNetV2 of half
# the width, a quarter of the channels in neck and heads, anchors from 14 pixels on, few regions.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', './_base_/digits.py']

model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        widen_factor=0.5,
        out_indices=(1, 2, 4, 6),
        act_cfg=dict(type='ReLU6'),
    ),
    neck=dict(in_channels=[16, 16, 48, 160], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[3.5], ratios=[1.0, 1.6, 2.2]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
