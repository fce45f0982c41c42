"""Any config's detector with weights that were never trained, but compute as trained ones do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..._compat import as_detector
from ...apis import build_detector
from ...apis.quantize_model import preprocessed
from ...errors import ClipQError

_THRESHOLDS = ('score_thr', 'conf_thr', 'filter_thr')
_CANDIDATES, _REGIONS, _RESULTS = 100, 50, 20


def _changed(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """``tree`` with each value in its dicts replaced by ``change(key, value)``, the outer first."""
    if isinstance(tree, Mapping):
        return {k: _changed(change(k, v), change) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_changed(item, change) for item in tree)
    return tree


def _values(tree: Any, key: str) -> Iterator[Any]:
    """Each value under ``key`` in the dicts of ``tree``."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _values(item, key)


def _untrained_and_alone(key: str, value: Any) -> Any:
    if key == 'type' and value in ('SyncBN', 'MMSyncBN'):
        return 'BN'
    if key == 'clip_border':
        return True  # pasting a mask fails on untrained boxes that lie outside
    # Downloads, and padding to the size of a training image.
    return None if key in ('teacher_ckpt', 'batch_augments') else value


def _limited(limits: Mapping[str, int]) -> Callable[[str, Any], Any]:
    def change(key: str, value: Any) -> Any:
        if key in _THRESHOLDS:
            return 0.0  # untrained scores are all low
        return min(value, limits[key]) if key in limits and value else value

    return change


def trial_config(path: str, few_boxes: bool = True) -> Config:
    """A config whose detector needs no download and no second process, and decodes few boxes.

    Scores of any height become boxes, of which few are kept, so that every part has work and
    selecting boxes takes little of the time.

    Args:
        path: Any config.
        few_boxes: Whether numbers of boxes are limited. Detectors whose numbers belong together,
            as that of queries and of results, need their own.

    Raises:
        ClipQError: if there is no model in it.
    """
    cfg = Config.fromfile(path)
    if 'model' not in cfg:
        raise ClipQError(f'{path}: found no model section, wanted a detector config')
    model = _changed(cfg.model.to_dict(), _untrained_and_alone)
    few: dict[str, int] = {}
    regions: dict[str, int] = {}
    if few_boxes:
        few = {'nms_pre': _CANDIDATES, 'max_per_img': _RESULTS}
        regions = {'nms_pre': _CANDIDATES, 'nms_post': _REGIONS, 'max_per_img': _REGIONS}
    if model.get('test_cfg'):
        model['test_cfg'] = {
            key: _changed(_limited(regions if key == 'rpn' else few)(key, value),
                          _limited(regions if key == 'rpn' else few))
            for key, value in model['test_cfg'].items()
        }  # fmt: skip
    proposals = (model.get('train_cfg') or {}).get('rpn_proposal')
    if proposals:
        model['train_cfg']['rpn_proposal'] = _changed(proposals, _limited(regions))
    cfg.model = model
    return cfg


def fixed_size(cfg: Config) -> int | None:
    """Height and width that the detector's anchors are made for; None if they may be any."""
    return next((size for size in _values(cfg.model, 'input_size') if isinstance(size, int)), None)


def number_of_classes(cfg: Config) -> int:
    """The least number of classes that any part of the detector tells apart."""
    counts = [*_values(cfg.model, 'num_classes'), *_values(cfg.model, 'num_things_classes')]
    return min((count for count in counts if isinstance(count, int) and count > 0), default=1)


def annotated(cfg: Config) -> dict[str, bool]:
    """Whether the training pipeline loads masks and semantic maps, as :func:`synthetic_batch` asks.

    A config without training data gets both.
    """
    loader = cfg.get('train_dataloader')
    both = not loader or 'LoadPanopticAnnotations' in _values(loader, 'type')
    loaded = {'masks': 'with_mask', 'semantic': 'with_seg'}
    return {name: both or any(_values(loader, key)) for name, key in loaded.items()}


@torch.no_grad()
def _settle(model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> bool:
    """Random affine maps for the batch norms, and the statistics of ``batch``.

    Weights that begin at zero, as those of offsets do, become small random ones: products with
    zero would be exact in any precision.

    Returns:
        Whether ``model`` can predict on ``batch``. If not, some statistics may be standard ones.
    """
    for layer in model.modules():
        weight = getattr(layer, 'weight', None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1 and not weight.any():
            weight.normal_(0, 0.01, generator=generator)
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momentum = [layer.momentum for layer in norms]
    model.eval()
    for layer in norms:
        if layer.affine:
            # Norms that begin at zero end a branch beside an identity. With branches as strong as
            # the identity an untrained network multiplies any error until nothing else is left.
            share = 1.0 if layer.weight.any() else 0.2
            layer.weight.uniform_(0.5 * share, 1.5 * share, generator=generator)
            layer.bias.normal_(0, 0.2, generator=generator)
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # the average, not a moving one
    predicted = False
    with suppress(Exception):  # a stage of its own says why
        for images, samples in preprocessed(model, [batch]):
            as_detector(model).predict(images, samples)
        predicted = True
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    model.eval()
    return predicted


def fresh_detector(cfg: Config, batch: Mapping[str, Any], seed: int) -> tuple[nn.Module, bool]:
    """The config's detector with initial weights, in evaluation mode, and whether it can predict.

    Args:
        cfg: From :func:`trial_config`.
        batch: Images whose statistics the batch norms take, so that activations stay as large as
            those of a trained detector.
        seed: Of everything random.
    """
    torch.manual_seed(seed)
    model = build_detector(cfg.model, random=True)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)  # it would tell of every parameter
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    return model, _settle(model, batch, torch.Generator().manual_seed(seed))
