# The same with the box head's FC layers compressed by SVD at rank 256. They learn at a hundredth of
# the rate of the other layers, 0.00005, the best of the paper's Table 6.
# Start it at a trained stock or clipped Faster R-CNN, whose FC weights are factored on loading:
# --cfg-options load_from=CHECKPOINT
_base_ = './clipq_faster_rcnn.py'

model = dict(roi_head=dict(bbox_head=dict(type='mmclipq.SVDBBoxHead', svd_rank=256)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'shared_fcs': dict(lr_mult=0.01)}))
