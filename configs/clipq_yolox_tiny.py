# Stock YOLOX-tiny on COCO, fine-tuned for int8. Within its last 15 epochs, which are all of these,
# the stock schedule leaves Mosaic out.
# Start it at a trained stock YOLOX-tiny: --cfg-options load_from=CHECKPOINT
_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'

custom_hooks = __import__('mmclipq').clipq_hooks(_base_)

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=12, val_interval=3)
