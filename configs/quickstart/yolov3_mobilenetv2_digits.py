# Stock YOLOv3-MobileNetV2 on the digits of tools/make_digits.py, from scratch in minutes on a CPU.
# The data set lies in the folder DIGITS_ROOT, by default data/digits.
_base_ = 'mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py'

data_root = '{{$DIGITS_ROOT:data/digits}}'
metainfo = dict(classes=tuple('0123456789'))
scale = (160, 160)

# Half as wide as the stock one, with anchors clustered on the boxes of the default data set. With
# mean 0 and standard deviation 255 the network's input lies in 0..1 in steps of 1/255.
# The classes weigh more than in the stock config: boxes are learnt long before them.
model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(widen_factor=0.5, init_cfg=None),
    neck=dict(in_channels=[160, 48, 16], out_channels=[96, 64, 48]),
    bbox_head=dict(
        num_classes=10,
        in_channels=[96, 64, 48],
        out_channels=[96, 64, 48],
        anchor_generator=dict(
            base_sizes=[
                [(33, 46), (33, 58), (42, 60)],
                [(21, 40), (26, 38), (26, 48)],
                [(14, 29), (17, 30), (21, 32)],
            ]
        ),
        loss_cls=dict(loss_weight=2.0),
    ),
)

# Digits must not be flipped.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    _delete_=True,
    type='CocoDataset',
    data_root=data_root,
    metainfo=metainfo,
    data_prefix=dict(img='JPEGImages/'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(**dataset, ann_file='annotations/instances_train.json', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_val.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-3, weight_decay=0.0005),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-5),
]
train_cfg = dict(max_epochs=8, val_interval=4)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=8, max_keep_ckpts=1),
)
