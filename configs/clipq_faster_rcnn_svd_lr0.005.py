# The same with the full learning rate for the SVD layers.
_base_ = './clipq_faster_rcnn_svd.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'shared_fcs': dict(lr_mult=1.0)}))
