# The digits of tools/make_digits.py at 160x160, with a schedule from scratch of minutes on a CPU,
# for any detector. The data set lies in the folder DIGITS_ROOT, by default data/digits.
_base_ = '../../_base_/small_data.py'

data_root = '{{$DIGITS_ROOT:data/digits}}'
metainfo = dict(classes=tuple('0123456789'))
scale = (160, 160)

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
    type='CocoDataset',
    data_root=data_root,
    metainfo=metainfo,
    data_prefix=dict(img='JPEGImages/'),
)
train_dataloader = dict(
    dataset=dict(**dataset, ann_file='annotations/instances_train.json', pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=16,
    dataset=dict(**dataset, ann_file='annotations/instances_val.json', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=4e-3))
train_cfg = dict(max_epochs=8)
# Nothing reads the last convolution of MobileNetV2.
find_unused_parameters = True
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=8))

# For the short schedules that start at a trained checkpoint.
finetuning = dict(
    optim_wrapper=dict(optimizer=dict(lr=2e-4)),
    train_cfg=dict(max_epochs=2, val_interval=2),
    default_hooks=dict(checkpoint=dict(interval=2)),
)
