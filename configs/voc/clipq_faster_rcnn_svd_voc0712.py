# The same with SVD-compressed FC layers, which learn at a hundredth of the others' rate, 0.00005.
# Start it at a dense checkpoint: --cfg-options load_from=CHECKPOINT
_base_ = './clipq_faster_rcnn_voc0712.py'

model = dict(roi_head=dict(bbox_head=dict(type='mmclipq.SVDBBoxHead', svd_rank=256)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'shared_fcs': dict(lr_mult=0.01)}))
