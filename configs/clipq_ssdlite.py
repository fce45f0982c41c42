# Stock SSDLite on COCO, fine-tuned for int8.
# Start it at a trained stock SSDLite: --cfg-options load_from=CHECKPOINT
_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'

custom_hooks = __import__('mmclipq').clipq_hooks(_base_)

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1.5e-5),
]
train_cfg = dict(max_epochs=6, val_interval=3)
