# Stock Faster R-CNN R50-FPN on COCO 2017, in the folder data/coco.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
