# Stock RTMDet-tiny on COCO, fine-tuned for int8, without Mosaic as in its last epochs.
# Start it at a trained stock RTMDet-tiny: --cfg-options load_from=CHECKPOINT
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

custom_hooks = __import__('mmclipq').clipq_hooks(_base_)

optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=2e-5),
]
train_cfg = dict(max_epochs=12, val_interval=3)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline_stage2))
