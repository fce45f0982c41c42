# Stock RTMDet-tiny on the digits, from scratch on a CPU, without Mosaic and MixUp. With mean 0 and
# standard deviation 255 the network's input lies in 0..1 in steps of 1/255.
_base_ = './_base_/digits.py'

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

model = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').model
model.data_preprocessor.update(mean=[0, 0, 0], std=[255, 255, 255], batch_augments=None)
model.backbone.update(norm_cfg=dict(type='BN'), init_cfg=None)
model.neck.update(norm_cfg=dict(type='BN'))
model.bbox_head.update(num_classes=10, norm_cfg=dict(type='BN'))

optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=12, val_interval=6)
