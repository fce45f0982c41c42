# Stock FCOS with its GroupNorm head on the digits, from scratch on a CPU: a ResNet-18, a quarter of
# the channels in neck and head, and levels for small boxes.
_base_ = './_base_/digits.py'

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

model = get_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py').model
model.data_preprocessor.update(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=False)
model.backbone.update(
    depth=18, frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='BN'), style='pytorch',
    init_cfg=None,
)  # fmt: skip
model.neck.update(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=3)
model.bbox_head.update(
    num_classes=10, in_channels=64, feat_channels=64, stacked_convs=2, strides=[8, 16, 32],
    regress_ranges=((-1, 48), (48, 96), (96, 1e8)), norm_cfg=dict(type='GN', num_groups=16),
)  # fmt: skip

optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=12, val_interval=6)
