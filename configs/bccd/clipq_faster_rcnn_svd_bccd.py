# The same with SVD-compressed FC layers, which learn at a hundredth of the rate of the others.
# Start it at a dense checkpoint, whose factors are computed on loading:
# --cfg-options load_from=CHECKPOINT
_base_ = './clipq_faster_rcnn_bccd.py'

model = dict(roi_head=dict(bbox_head=dict(type='mmclipq.SVDBBoxHead', svd_rank=256)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'shared_fcs': dict(lr_mult=0.01)}))
