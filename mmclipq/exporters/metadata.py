"""What a file tells about the detector inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..version import __version__


def metadata(config: Mapping[str, Any], meta: Mapping[str, Any], **more: Any) -> dict[str, str]:
    """Strings by key: classes, normalization, input layout, mmclipq's version; JSON but for plain
    strings.

    Args:
        config: Config stored in a ``.clipq`` file.
        meta: Its facts about the data set.
        **more: Further facts.
    """
    model = config['model']
    pre = dict(model.get('data_preprocessor') or {})
    values = {
        'mmclipq_version': __version__,
        'detector': str(model.get('type')),
        'classes': list(meta.get('classes') or ()),
        'input_layout': 'NCHW float32, normalized: (pixel - mean) / std per channel',
        'mean': list(pre.get('mean') or [0.0, 0.0, 0.0]),
        'std': list(pre.get('std') or [1.0, 1.0, 1.0]),
        'channel_order': 'RGB' if pre.get('bgr_to_rgb') else 'BGR',
        'pad_size_divisor': int(pre.get('pad_size_divisor', 1)),
        'pad_value': pre.get('pad_value', 0),
        'data_preprocessor': pre,
        'pipeline': list(config.get('pipeline') or ()),
        **more,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
