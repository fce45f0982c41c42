"""Prepares the detector for clipped training and adds the losses of its weights."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..._compat import as_detector, mend_heads
from ...apis.clipq_config import clipq_options
from ...models.losses import BitsLoss, LqLoss
from ...prepare import (
    clip_layers,
    find_weight_ranges,
    finish_input_observation,
    load_ranges_state,
    prepare_model,
    prepare_options,
    ranges_state,
    start_input_observation,
)
from ...registry import HOOKS, MODELS

CHECKPOINT_KEY = 'clipq'


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector itself, without a DDP wrapper."""
    return model.get_submodule('module') if is_model_wrapper(model) else model


@HOOKS.register_module()
class ClipQHook(Hook):
    """Swaps layers before checkpoints load, finds ``'auto'`` ranges, adds the losses of weights.

    The swap happens in ``before_run``, ahead of the EMA hook's copy, and keeps the Parameter
    objects that the optimizer holds. Open weight ranges are set once the checkpoint is loaded, open
    input ranges after the first ``observe_iters`` training iterations, equally on all ranks. The
    ranges travel in the checkpoint under the key ``'clipq'``, so they are the same after resuming.

    Args:
        **options: Options of the ``clipq`` section of the config, which they override.
    """

    priority = 'VERY_HIGH'

    def __init__(self, **options: Any) -> None:
        clipq_options(options)
        self._overrides = options
        self._options: dict[str, Any] = {}
        self._loss: LqLoss | None = None
        self._bits: BitsLoss | None = None
        self._iteration = 0
        self._remaining = 0

    def before_run(self, runner: Runner) -> None:
        if self._options:  # the same runner trained before
            return
        self._options = clipq_options(runner.cfg.get('clipq'), **self._overrides)
        # The export reads the config, which must say what the layers are.
        if self._overrides:
            runner.cfg.clipq = {**(runner.cfg.get('clipq') or {}), **self._overrides}
        mend_heads()  # validation is next
        model = unwrapped(runner.model)
        report = prepare_model(model, **prepare_options(self._options))
        runner.logger.info(f'mmclipq: {report}')
        if self._options['lq'] is not None:
            self._loss = MODELS.build({'type': 'LqLoss', **self._options['lq']})
        if self._options['bits'] is not None:
            self._bits = MODELS.build({'type': 'BitsLoss', **self._options['bits']})
        if self._loss is not None or self._bits is not None:
            model.register_forward_hook(self._add_losses, with_kwargs=True)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if CHECKPOINT_KEY not in checkpoint:
            return
        model = unwrapped(runner.model)
        before, after = ranges_state(model), checkpoint[CHECKPOINT_KEY]
        load_ranges_state(model, after)
        replaced = [
            name
            for name, ranges in before.items()
            if any(old not in (None, new) for old, new in zip(ranges, after[name], strict=True))
        ]
        if replaced:
            runner.logger.warning(
                f'mmclipq: the ranges of the checkpoint replace those of the config in '
                f'{len(replaced)} layers, first {replaced[0]}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[CHECKPOINT_KEY] = ranges_state(unwrapped(runner.model))

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        find_weight_ranges(model)
        if start_input_observation(model):
            self._remaining = self._options['observe_iters']

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._iteration = runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._remaining:
            self._remaining -= 1
            if not self._remaining:
                self._finish_observation(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        # An epoch shorter than the observation: checkpoints and validation follow at once.
        if self._remaining:
            self._remaining = 0
            self._finish_observation(runner)

    def _finish_observation(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        finish_input_observation(model, self._options['percentile'])
        exponents = [exponent for exponent, _ in ranges_state(model).values()]
        found = [exponent for exponent in exponents if exponent is not None]
        span = f'2^{min(found)} to 2^{max(found)}' if found else 'none'
        runner.logger.info(
            f'mmclipq: input ranges found for {len(found)} of {len(exponents)} layers, {span}; '
            'clipping from now on'
        )

    def _add_losses(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        if mode != 'loss' or not isinstance(output, dict):
            return output
        layers = [layer for _, layer in clip_layers(model)]
        added = {}
        if self._loss is not None:
            added['loss_lq'] = self._loss(layers, self._iteration)
        if self._bits is not None:
            others, _ = as_detector(model).parse_losses(output)
            loss, bits = self._bits(layers, self._iteration, others.detach())
            added |= {'loss_bits': loss, 'bits_per_weight': bits}
        return {**output, **added}
