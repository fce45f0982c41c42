"""Fields of the wrong type or size are named, whatever a file says."""

import dataclasses
import math

import pytest

from mmclipq.graph.fields import check_fields
from mmclipq.graph.ir import (
    FLOAT,
    AvgPool,
    Concat,
    Conv,
    FloatCall,
    GraphError,
    GroupNorm,
    MaxPool,
    RoIAlign,
    TensorType,
    Upsample,
)

S8 = TensorType(0)
CONV = Conv('y', S8, 'x', 'w', 'e', 'm', 'b')
POOL = MaxPool('y', S8, 'x', (3, 3), (2, 2))
REGIONS = RoIAlign('y', S8, ('a', 'b'), 'rois', (7, 7), (0.25, 0.125))
GOOD = [
    CONV, POOL, REGIONS, AvgPool('y', S8, 'x'), Upsample('y', S8, 'x', (2.0, 2.0)),
    GroupNorm('y', S8, 'x', 'g', 'b', groups=4), FloatCall('y', FLOAT, 'function', 'torch.cat'),
]  # fmt: skip


@pytest.mark.parametrize('node', GOOD, ids=lambda node: type(node).__name__)
def test_what_lowering_writes_passes(node):
    check_fields(node)


@pytest.mark.parametrize(
    ('node', 'changes', 'message'),
    [
        (CONV, dict(stride='22'), 'y: found stride'),
        (CONV, dict(stride=(2,)), 'y: found stride'),
        (CONV, dict(stride=[2, 2]), 'y: found stride'),
        (CONV, dict(stride=(0, 1)), 'wanted numbers from 1'),
        (CONV, dict(padding=(1 << 40, 0)), 'y: found padding'),
        (CONV, dict(padding=(-1, 0)), 'y: found padding'),
        (CONV, dict(groups=True), 'y: found groups=True'),
        (CONV, dict(groups=1.5), 'y: found groups=1.5'),
        (CONV, dict(slope=math.nan), 'y: found slope=nan'),
        (CONV, dict(slope=math.inf), 'y: found slope=inf'),
        (CONV, dict(slope=None), 'y: found slope=None'),
        (CONV, dict(weight=3), 'y: found weight=3'),
        (CONV, dict(residual=['x']), 'y: found residual'),
        (CONV, dict(residual_last=1), 'y: found residual_last=1'),
        (CONV, dict(name=''), 'wanted a short name'),
        (CONV, dict(name='y' * 5000), 'wanted a short name'),
        (CONV, dict(name=None), 'wanted a short name'),
        (CONV, dict(type=TensorType('0')), 'y: found the type'),
        (CONV, dict(type=TensorType(True)), 'y: found the type'),
        (CONV, dict(type=TensorType(0, 1)), 'y: found the type'),
        (CONV, dict(type=TensorType(0, False, 8.0)), 'y: found the type'),
        (POOL, dict(kernel=(3, 3, 3)), 'y: found kernel'),
        (REGIONS, dict(levels='ab'), 'y: found levels'),
        (REGIONS, dict(levels=('a',) * 5000), 'y: found levels'),
        (REGIONS, dict(scales=(0.25, -1.0)), 'y: found scales'),
        (REGIONS, dict(output_size=(1 << 20, 7)), 'y: found output_size'),
        (REGIONS, dict(sampling_ratio=1 << 30), 'y: found sampling_ratio'),
        (REGIONS, dict(finest_scale=0), 'y: found finest_scale'),
        (Upsample('y', S8, 'x'), dict(scale=(1e300, 1.0)), 'y: found scale'),
        (Concat('y', S8, ('a',)), dict(tensors={'a': 1}), 'y: found tensors'),
    ],
)
def test_what_no_lowering_writes_is_named(node, changes, message):
    with pytest.raises(GraphError, match=message):
        check_fields(dataclasses.replace(node, **changes))
