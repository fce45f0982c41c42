# Stock YOLOX-tiny on the digits, from scratch on a CPU, without Mosaic and random sizes. With mean
# 0 and standard deviation 255 the network's input lies in 0..1 in steps of 1/255.
_base_ = './_base_/digits.py'

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

model = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model
model.data_preprocessor.update(mean=[0, 0, 0], std=[255, 255, 255], pad_value=0)
model.data_preprocessor.pop('batch_augments')
model.bbox_head.update(num_classes=10)
# Statistics that follow within the few steps of the schedule.
model.backbone.update(norm_cfg=dict(type='BN', momentum=0.1, eps=0.001))
model.neck.update(norm_cfg=dict(type='BN', momentum=0.1, eps=0.001))
model.bbox_head.update(norm_cfg=dict(type='BN', momentum=0.1, eps=0.001))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=10, val_interval=5)
