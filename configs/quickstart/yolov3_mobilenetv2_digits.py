# Stock YOLOv3-MobileNetV2 on the digits, from scratch in minutes on a CPU.
_base_ = './_base_/digits.py'

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

# Half as wide as the stock one, with anchors clustered on the boxes of the default data set. With
# mean 0 and standard deviation 255 the network's input lies in 0..1 in steps of 1/255.
# The classes weigh more than in the stock config: boxes are learnt long before them.
model = get_config('mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py').model
model.data_preprocessor.update(mean=[0, 0, 0], std=[255, 255, 255])
model.backbone.update(widen_factor=0.5, init_cfg=None)
model.neck.update(in_channels=[160, 48, 16], out_channels=[96, 64, 48])
model.bbox_head.update(num_classes=10, in_channels=[96, 64, 48], out_channels=[96, 64, 48])
model.bbox_head.anchor_generator.update(
    base_sizes=[
        [(33, 46), (33, 58), (42, 60)],
        [(21, 40), (26, 38), (26, 48)],
        [(14, 29), (17, 30), (21, 32)],
    ]
)
model.bbox_head.loss_cls.update(loss_weight=2.0)
