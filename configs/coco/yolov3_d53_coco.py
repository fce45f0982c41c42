# Stock YOLOv3-Darknet53 at 416x416 on COCO 2017, in the folder data/coco.
_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py'
