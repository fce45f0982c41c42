"""What the config inside a file may say, which a stranger may have written: it builds a detector.

MMEngine's registries build whatever a config names. A name that is in none of them is imported as a
Python module; ``_scope_`` imports a package; some classes of MMDetection evaluate a text, read a
config of Python code, or load a checkpoint from a path or an address. None of this passes.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS, Registry

from ..graph.container import ArtifactError
from ..graph.limits import Limits

SCOPES = (
    'mmclipq', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmcls', 'mmseg', 'mmyolo', 'mmrotate',
)  # fmt: skip
_TYPE = re.compile(rf'(({"|".join(SCOPES)})\.)?[A-Za-z_]\w*')
_SUPPRESSION = frozenset({'nms', 'soft_nms', 'nms_match', 'nms_quadri', 'nms_rotated'})
_TRANSITIONS = frozenset({'conv', 'interpolation_conv', 'last_conv'})
_PLAIN_TYPES = {
    'nms': _SUPPRESSION,
    'dqs_cfg': _SUPPRESSION,
    'roi_layer': frozenset({
        'RoIAlign', 'RoIPool', 'SimpleRoIAlign', 'DeformRoIPool', 'DeformRoIPoolPack',
        'ModulatedDeformRoIPoolPack', 'RoIAlignRotated', 'RiRoIAlignRotated', 'PrRoIPool',
        'BorderAlign', 'CornerPool',
    }),
    'adapt_cfg': frozenset({'dilation', 'offset'}),
    **dict.fromkeys(
        ('same_up_trans', 'same_down_trans', 'across_lateral_trans', 'across_down_trans',
         'across_up_trans', 'across_skip_trans', 'output_trans'),
        _TRANSITIONS,
    ),
}  # fmt: skip
"""Types that no registry holds, by the key whose value they describe."""
_REFUSED_TYPES = {
    'BertModel': 'loads a language model from a path or an address',
    'Detectron2Wrapper': "builds another library's detector and loads its weights",
    'CameraMotionCompensation': 'evaluates a text',
    'AppearanceFreeLink': 'loads a checkpoint',
    'RandomSamplingNegPos': 'loads a tokenizer from a path or an address',
    'Albu': 'builds whatever another library has of a name',
}
_REFUSED_KEYS = frozenset({
    '_base_', '_delete_', 'custom_imports', 'teacher_ckpt', 'label_map_file', 'lang_model_name',
    'tokenizer_name', 'file_client_args',
})  # fmt: skip
_UNREAD_KEYS = frozenset({'init_cfg', 'pretrained'})
"""Where initial weights come from, which a file replaces: the builder leaves these out."""
_PATH = re.compile(r'[/\\]|\.(py|pyc|pth|pt|pkl|pickle|npy|npz|json|ya?ml|tar|zip|bin)$', re.I)
_MOST_LEVELS, _MOST_ITEMS, _MOST_VALUES, _LONGEST = 32, 1 << 12, 1 << 18, 1 << 10
_LARGEST = 2.0**53
_LARGEST_COUNT = 2**24
_MOST_OF = {'sampling_ratio': 64, 'output_size': 2**10}
"""Numbers of operators of mmcv that take whatever memory and time these ask for."""


def _registries(scope: str) -> Iterator[Registry]:
    """Registries of a detector's parts and pipeline that may know names of ``scope``, filled."""
    for root in (MODELS, TASK_UTILS, TRANSFORMS):
        root.import_from_location()
        yield root
        for name in dict.fromkeys((scope, 'mmdet')):
            if name == 'mmengine':
                continue
            # Its own table is filled only once the scope's package is imported.
            with contextlib.suppress(ImportError):
                importlib.import_module(f'{name}.registry')
            if (child := root.children.get(name)) is not None:
                child.import_from_location()
                yield child


def _is_registered(kind: str) -> bool:
    """Whether a registry holds the name; MMEngine would import anything else as a module."""
    scope, _, name = kind.rpartition('.')
    return any(name in registry.module_dict for registry in _registries(scope or 'mmdet'))


class _Check:
    """One walk through a config."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.values, self.known = path, 0, set[str]()

    def refuse(self, found: str, wanted: str) -> ArtifactError:
        return ArtifactError(f'{self.path}: found {found} in its config, wanted {wanted}')

    def type(self, kind: Any, key: str) -> None:
        name = kind if isinstance(kind, str) else ''
        if name in self.known or name in _PLAIN_TYPES.get(key, ()):
            return
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind) or not _is_registered(kind):
            raise ArtifactError(
                f'{self.path}: found the type {str(kind)[:80]!r}, wanted a registered name'
            )
        if reason := _REFUSED_TYPES.get(kind.rpartition('.')[2]):
            raise self.refuse(
                f'the type {kind!r}, which {reason}', 'types that build from it alone'
            )
        self.known.add(kind)

    def walk(self, value: Any, key: str, level: int) -> None:
        self.values += 1
        if level > _MOST_LEVELS or self.values > _MOST_VALUES:
            raise self.refuse(f'more than {_MOST_LEVELS} levels or {_MOST_VALUES} values', 'fewer')
        if isinstance(value, Mapping):
            self.mapping(value, key, level)
        elif isinstance(value, (list, tuple)):
            if len(value) > _MOST_ITEMS:
                raise self.refuse(f'{len(value)} items of {key!r}', f'at most {_MOST_ITEMS}')
            for item in value:
                self.walk(item, key, level + 1)
        elif isinstance(value, str):
            if len(value) > _LONGEST or _PATH.search(value):
                raise self.refuse(
                    f'{key}={value[:80]!r}, which may name a file or an address',
                    'a config that stands alone',
                )
        elif isinstance(value, (int, float)):
            most = _LARGEST_COUNT if isinstance(value, int) else _LARGEST
            most = _MOST_OF.get(key, most)
            if math.isnan(value) or (abs(value) > most and not math.isinf(value)):
                raise self.refuse(f'{key}={str(value)[:40]}', f'numbers up to {most:g}')
        elif value is not None:
            raise self.refuse(f'{key} of type {type(value).__name__}', 'plain data')

    def mapping(self, value: Mapping[str, Any], key: str, level: int) -> None:
        if len(value) > _MOST_ITEMS:
            raise self.refuse(f'{len(value)} entries of {key!r}', f'at most {_MOST_ITEMS}')
        if 'type' in value:
            self.type(value['type'], key)
        for name, item in value.items():
            if not isinstance(name, str) or len(name) > _LONGEST:
                raise self.refuse(f'the key {str(name)[:80]!r}', 'short texts as keys')
            if name in _UNREAD_KEYS or (name == 'type' and isinstance(item, str)):
                continue
            if name in _REFUSED_KEYS and item is not None:
                raise self.refuse(
                    f'{name!r}, which makes MMDetection read files or run code',
                    'a config that stands alone',
                )
            if name == '_scope_' and item not in SCOPES:
                raise self.refuse(f'the scope {str(item)[:80]!r}', f'one of {SCOPES}')
            self.walk(item, name, level + 1)


def check_config(config: Any, path: str | os.PathLike, who: str = 'config') -> None:
    """Return if ``config`` names nothing but registered types, and no files.

    Args:
        config: Plain data: the model section, a pipeline, or both in a mapping.
        path: The file that it comes from.
        who: Key of the config itself.

    Raises:
        ArtifactError: naming the file and what stands there.
    """
    _Check(path).walk(config, who, 0)


def check_pipeline(steps: Any, path: str | os.PathLike, limits: Limits) -> None:
    """Return if ``steps`` are transforms whose images stay within ``limits.pixels``.

    Raises:
        ArtifactError: naming the file and what stands there.
        LimitError: if a size is larger.
    """
    if not isinstance(steps, (list, tuple)) or not all(isinstance(s, Mapping) for s in steps):
        raise ArtifactError(f'{path}: found a pipeline of {type(steps).__name__}, wanted a list')
    check_config(steps, path, 'pipeline')
    for pair in _pairs(list(steps)):
        limits.check('pixels', abs(pair[0] * pair[1]), f'{path}: pipeline')


def _pairs(value: Any) -> Iterator[tuple[float, float]]:
    """What may be a size among ``value``: two numbers, or one for both."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _pairs(item)
    elif isinstance(value, (list, tuple)):
        numbers = [v for v in value if isinstance(v, (int, float)) and not math.isinf(v)]
        if len(numbers) == len(value) == 2:
            yield numbers[0], numbers[1]
            return
        for item in value:
            yield from _pairs(item)
    elif isinstance(value, int):
        yield value, 1 if isinstance(value, bool) else value


def image_size(steps: Any) -> tuple[int, int]:
    """Height and width of the images that a pipeline makes; those of COCO without a size."""
    for step in steps:
        scale = step.get('scale')
        if isinstance(scale, int) and scale > 0:
            return scale, scale
        sides = scale if isinstance(scale, (list, tuple)) and len(scale) == 2 else ()
        if sides and all(isinstance(side, int) and side > 0 for side in sides):
            return sides[1], sides[0]
    return 800, 1333
