# Stock YOLOv3-Darknet53 at 416x416 on VOC 2007+2012: mmdet's model, augmentation and 273 passes, as
# 91 epochs of 3.
_base_ = ['./_base_/voc0712.py', 'mmdet::_base_/default_runtime.py']

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

stock = get_config('mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py')
model = stock.model
model.bbox_head.update(num_classes=20)

test_pipeline = [
    *stock.test_pipeline[:-1],
    dict(type='PackDetInputs', meta_keys=_base_.test_meta_keys),
]
train_dataloader = _base_.train_dataloader
train_dataloader.update(batch_size=8, num_workers=4)
for part in train_dataloader.dataset.dataset.datasets:
    part.pipeline = stock.train_pipeline
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=91, val_interval=7)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = stock.optim_wrapper
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=True, milestones=[73, 82], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=7))
auto_scale_lr = dict(base_batch_size=64)
del stock, part
