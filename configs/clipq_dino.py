# Stock DINO on COCO, fine-tuned for int8.
# Start it at a trained stock DINO: --cfg-options load_from=CHECKPOINT
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './_base_/clipq.py']

optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-7),
]
train_cfg = dict(max_epochs=6, val_interval=3)
