# Stock YOLOv3-Darknet53 on the BCCD blood-cell images, from scratch.
_base_ = './_base_/bccd.py'

# MMEngine takes a file that imports before it names its base for one of its other style.
from mmengine.hub import get_config  # noqa: E402

model = get_config('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py').model
# From scratch the statistics of the batch norms must be learnt, too.
model.backbone.update(init_cfg=None, norm_eval=False, frozen_stages=-1)
model.bbox_head.update(num_classes=3)
