# The enabling base for small files: add it to the `_base_` list of any detector's config in place
# of clipq.py. The file behind the last epoch has codes that take a tenth of the float32 bytes.
_base_ = './clipq.py'

clipq = dict(int8=dict(bias_correction=True))  # belongs to codes of a wanted size
custom_hooks = [
    dict(type='mmclipq.ClipQHook'),
    dict(type='mmclipq.Int8ExportHook', size=0.1, compress='best'),
]
