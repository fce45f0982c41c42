# The enabling base: add it to the `_base_` list of any detector's config.
# Every option can be overridden there, for example `clipq = dict(input_range=8.0)`.
clipq = dict(
    input_range='auto',  # half width of the input ranges: a power of two, or found on the data
    weight_range='auto',  # half width of the weight ranges: a power of two, or found on the weights
    round=False,  # also round to the grid in training, straight through
    rules=[],  # dicts of pattern='neck.*' and any of input_range, weight_range, round, skip
    first_layer=dict(),  # options of the first layer, for example dict(skip=True)
    last_layer=dict(),  # options of the prediction layers
    observe_iters=8,  # batches on which 'auto' input ranges are found
    percentile=99.99,  # share of the inputs, in percent, that an 'auto' range holds
    lq=dict(loss_weight=0.1, target='grid', warmup_iters=0),  # None: no Lq loss
    bits=None,  # dict(loss_weight=3.0, fineness=2.0, warmup_iters=0): weights of few bits
    # Calibration of the exported int8 file; offsets=False: no zero point, as the paper has it.
    # method: 'mse', 'max', 'percentile' (with percentile=99.99), 'kl' or 'output'.
    int8=dict(calib_images=64, method='mse', offsets=True),
)
custom_hooks = [dict(type='mmclipq.ClipQHook'), dict(type='mmclipq.Int8ExportHook')]
