# PASCAL VOC 2007 and 2012, trainval of both for training and the test of 2007, in the folder
# data/VOCdevkit; mmdet's own base, with COCO's metric beside VOC's.
_base_ = 'mmdet::_base_/datasets/voc0712.py'

# COCO's metric reads the objects of the test set from its samples.
test_meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')
val_evaluator = [
    dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
    dict(type='CocoMetric', metric='bbox'),
]
test_evaluator = val_evaluator
