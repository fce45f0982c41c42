# Stock Faster R-CNN R50-FPN on VOC 2007+2012: mmdet's model, pipelines and 4 epochs of 3 passes,
# with the paper's base learning rate of 0.005, which is mmdet's for 8 images a step.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/voc0712.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20)))

test_pipeline = [
    *_base_.test_pipeline[:-1],
    dict(type='PackDetInputs', meta_keys=_base_.test_meta_keys),
]
train_dataloader = dict(batch_size=8)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[3], gamma=0.1)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=0.0001),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
