"""The ``clipq`` section and the hooks of a config: defaults, checks, and how to add both."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from .. import base_config
from ..calibration.options import OPTION_NAMES, CalibrationOptions
from ..errors import ClipQError
from ..models.losses import BitsLoss, LqLoss
from ..prepare import check_options, check_rule

DEFAULTS: dict[str, Any] = {
    'input_range': 'auto',
    'weight_range': 'auto',
    'round': False,
    'rules': (),
    'first_layer': None,
    'last_layer': None,
    'observe_iters': 8,
    'percentile': 99.99,
    'lq': {'loss_weight': 0.1},
    'bits': None,
    'int8': {},
}
"""Options of the ``clipq`` section of a config and their defaults."""

_LQ = frozenset(inspect.signature(LqLoss).parameters)
_BITS = frozenset(inspect.signature(BitsLoss).parameters)
_INT8 = frozenset({'calib_images', 'calib_seed', *OPTION_NAMES})
_TRAINING_HOOK = 'ClipQHook'


def _check_names(found: Any, wanted: frozenset[str], where: str) -> None:
    if not isinstance(found, Mapping):
        raise ClipQError(f'{where}: found {found!r}, wanted a dict with some of {sorted(wanted)}')
    if unknown := sorted(set(found) - wanted):
        raise ClipQError(f'{where}: found options {unknown}, wanted some of {sorted(wanted)}')


def clipq_options(section: Mapping[str, Any] | None, **overrides: Any) -> dict[str, Any]:
    """The ``clipq`` section with defaults filled in.

    Raises:
        ClipQError: naming an option that does not exist or a value that makes no sense.
    """
    options = {**DEFAULTS, **(section or {}), **overrides}
    _check_names(options, frozenset(DEFAULTS), 'clipq')
    count, share = options['observe_iters'], options['percentile']
    if not isinstance(count, int) or count < 1:
        raise ClipQError(f'clipq: found observe_iters={count}, wanted a whole number from 1 up')
    if not isinstance(share, (int, float)) or not 0 < share <= 100:
        raise ClipQError(f'clipq: found percentile={share}, wanted one above 0, at most 100')
    check_options({k: options[k] for k in ('input_range', 'weight_range', 'round')}, 'clipq')
    for name in ('first_layer', 'last_layer'):
        check_options(options[name] or {}, name)
    if not isinstance(options['rules'], (list, tuple)):
        raise ClipQError(f'rules: found {options["rules"]!r}, wanted a list of dicts')
    for rule in options['rules']:
        check_rule(rule)
    _check_names(options['lq'] or {}, _LQ, 'clipq.lq')
    _check_names(options['bits'] or {}, _BITS, 'clipq.bits')
    _check_names(options['int8'] or {}, _INT8, 'clipq.int8')
    CalibrationOptions.of(options['int8'])
    return options


def _type_name(hook: Mapping[str, Any]) -> str:
    kind = hook['type']
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def clipq_hooks(config: Mapping[str, Any]) -> list[Any]:
    """The ``custom_hooks`` of a config, followed by those of the enabling base that it lacks.

    For a config whose base owns ``custom_hooks``, beside which no other base may own them:
    ``custom_hooks = __import__('mmclipq').clipq_hooks(_base_)``.
    """
    hooks = list(config.get('custom_hooks') or [])
    present = {_type_name(hook) for hook in hooks}
    base = Config.fromfile(base_config()).custom_hooks
    return hooks + [hook for hook in base if _type_name(hook) not in present]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{'lq.loss_weight': 1}`` as ``{'lq': {'loss_weight': 1}}``."""
    found: dict[str, Any] = {}
    for path, value in options.items():
        for name in reversed(path.split('.')):
            value = {name: value}
        found = _merged(found, value)
    return found


def with_clipq(cfg: Config, options: Mapping[str, Any] | None = None) -> Config:
    """A copy of a detector's config that trains with clipping, whatever hooks it owns.

    It has the section ``clipq``, in which ``options`` win over the config's own section and that
    over the enabling base, and the base's hooks behind its own. On a config that inherits the base
    this sets the options alone.

    Args:
        cfg: Any detector's config.
        options: Options of the section by name, or by path such as ``'lq.loss_weight'``.

    Raises:
        ClipQError: naming an option that does not exist or a value that makes no sense.
    """
    cfg = copy.deepcopy(cfg)
    section = Config.fromfile(base_config()).clipq.to_dict()
    section = _merged(section, (cfg.get('clipq') or ConfigDict()).to_dict())
    cfg.custom_hooks = clipq_hooks(cfg)
    for hook in cfg.custom_hooks:
        if _type_name(hook) == _TRAINING_HOOK:
            # Options of the hook itself win over the section, so they would win over new ones.
            for name in DEFAULTS.keys() & hook.keys():
                section[name] = _merged(section[name], hook.pop(name))
    cfg.clipq = _merged(section, _nested(options or {}))
    clipq_options(cfg.clipq)
    return cfg
