# The enabling base for small files: add it to the `_base_` list of any detector's config in place
# of clipq.py, fine-tune, then convert with `tools/quantize.py --size SHARE --compress best
# --bias-correction`.
_base_ = './clipq.py'

clipq = dict(
    # What a bit per weight costs, as a share of the detector's losses; codes are counted in steps
    # of half a row's root mean square.
    bits=dict(_delete_=True, loss_weight=3.0, fineness=2.0, warmup_iters=0),
)
custom_hooks = [
    dict(type='mmclipq.ClipQHook'),
    dict(type='mmclipq.Int8ExportHook'),
    # Half of the weights become zero in the first half of the training; share=0: none.
    dict(type='mmclipq.MagnitudePruningHook', share=0.5, until=0.5),
]
