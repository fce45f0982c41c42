# Stock YOLOv3-Darknet53 on the BCCD blood-cell images, from scratch at 320x256.
# The data set lies in the folder BCCD_ROOT (VOC layout), by default data/BCCD.
_base_ = 'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py'

data_root = '{{$BCCD_ROOT:data/BCCD}}'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
scale = (320, 256)

# From scratch the statistics of the batch norms must be learnt, too.
model = dict(
    backbone=dict(init_cfg=None, norm_eval=False, frozen_stages=-1),
    bbox_head=dict(num_classes=3),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
dataset = dict(
    _delete_=True,
    type='XMLDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_subdir='JPEGImages',
    ann_subdir='Annotations',
    data_prefix=dict(sub_data_root=''),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Main/train.txt',
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        **dataset, ann_file='ImageSets/Main/test.txt', test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.0005),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-5),
]
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=16, val_interval=4)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=4, max_keep_ckpts=1),
)
