# The BCCD blood-cell images at 320x256 with a short schedule from scratch, for any detector.
# The data set lies in the folder BCCD_ROOT (VOC layout), by default data/BCCD.
_base_ = '../../_base_/small_data.py'

data_root = '{{$BCCD_ROOT:data/BCCD}}'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
scale = (320, 256)

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
    type='XMLDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_subdir='JPEGImages',
    ann_subdir='Annotations',
    data_prefix=dict(sub_data_root=''),
)
train_dataloader = dict(
    dataset=dict(
        **dataset,
        ann_file='ImageSets/Main/train.txt',
        # Two boxes of the data set have no area, whose logarithm no box regression survives.
        filter_cfg=dict(filter_empty_gt=True, min_size=0, bbox_min_size=1),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(**dataset, ann_file='ImageSets/Main/test.txt', pipeline=test_pipeline)
)
test_dataloader = val_dataloader

# For the short schedules that start at a trained checkpoint.
finetuning = dict(
    optim_wrapper=dict(optimizer=dict(lr=1e-4)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
        dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
    ],
)
