# Stock YOLOX-tiny on COCO, fine-tuned for int8: the way for a config that has `custom_hooks`.
# Two bases may not own the same key and lists are replaced, not merged. So _base_/clipq.py stays
# out and the two hooks are appended to the stock ones. Options of a `clipq` section start at the
# values that _base_/clipq.py lists, with or without that file.
# Start it at a trained stock YOLOX-tiny: --cfg-options load_from=CHECKPOINT
_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmclipq.ClipQHook'),
    dict(type='mmclipq.Int8ExportHook'),
]

# Within its last 15 epochs, which are all of these, the stock schedule leaves Mosaic out.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-6),
]
train_cfg = dict(max_epochs=12, val_interval=3)
