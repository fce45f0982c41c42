"""Codes straight from pixels: those of the stock preprocessor's images, on every backend."""

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from torch import nn

from mmclipq import fixed_point as fp
from mmclipq.backends import build_backend
from mmclipq.backends.base import find_entry
from mmclipq.graph import ir
from mmclipq.graph.types import TensorType
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.pipeline.images import FastPreprocessor, PixelCodes, copied, takes_pixels
from mmclipq.pipeline.mixing import mix_in

pytestmark = pytest.mark.skipif(bool(why_unavailable()), reason='no compiled CPU operators')

STOCK = {
    'usual': dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    'scaled': dict(mean=[0, 0, 0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True, pad_size_divisor=8),
    'turned the other way': dict(mean=[103.5, 116.3, 123.7], std=[57.4, 57.1, 58.4]),
    'padded with grey': dict(
        mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], pad_value=114,
        pad_size_divisor=16,
    ),
    'without normalization': dict(pad_value=7.5),
    'without normalization, turned': dict(rgb_to_bgr=True, pad_size_divisor=4),
}  # fmt: skip
KINDS = [TensorType(1), TensorType(2, False, 128), TensorType(8, False), TensorType(2, False, 64)]


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]


def channels_last(image):
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize('stock', STOCK)
@pytest.mark.parametrize('kind', KINDS, ids=str)
@pytest.mark.parametrize('order', [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize('sizes', [[(1, 1)], [(37, 50)], [(64, 32), (20, 61), (33, 33)]])
def test_codes_are_those_of_the_stock_images(stock, kind, order, sizes):
    preprocessor = DetDataPreprocessor(**STOCK[stock])
    given = [order(image) for image in images(*sizes)]
    values = preprocessor({'inputs': given, 'data_samples': None})['inputs']
    wanted = fp.encode(values, kind.exponent, kind.signed, offset=kind.offset)
    assert takes_pixels(preprocessor)
    found = PixelCodes(preprocessor, kind)(given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, wanted)


def test_tables_take_no_memory_for_the_padding_of_images():
    stock = STOCK['usual']
    whole = PixelCodes(DetDataPreprocessor(**stock), KINDS[0])
    huge = PixelCodes(DetDataPreprocessor(**{**stock, 'pad_size_divisor': 1 << 40}), KINDS[0])
    assert torch.equal(whole.tables, huge.tables)


def samples(count):
    meta = dict(img_shape=(20, 20), ori_shape=(20, 20), scale_factor=(1.0, 1.0))
    return [DetDataSample(metainfo=meta) for _ in range(count)]


def test_samples_are_told_as_by_the_stock_preprocessor():
    stock, quick = (DetDataPreprocessor(**STOCK['usual']) for _ in range(2))
    vars(quick)['pixel_codes'] = PixelCodes(quick, KINDS[0])
    mix_in(quick, FastPreprocessor, 'Fast')
    assert isinstance(quick, FastPreprocessor)
    given = images((20, 41), (33, 20))
    results = [p({'inputs': given, 'data_samples': samples(2)}) for p in (stock, quick)]
    assert results[1]['inputs'].dtype == torch.int8
    told = [[sample.metainfo for sample in result['data_samples']] for result in results]
    assert told[0] == told[1]
    assert quick({'inputs': given})['data_samples'] is None


def test_samples_are_copied_as_the_stock_preprocessor_does():
    given = samples(1)[0]
    given.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.rand(3, 4)), labels=torch.ones(3)
    )
    given.set_metainfo({'path': ['a'], 'array': np.zeros(2)})
    found, wanted = copied(given), given.to('cpu')
    assert set(found.all_keys()) == set(wanted.all_keys())
    assert set(found.metainfo_keys()) == set(wanted.metainfo_keys())
    assert torch.equal(found.gt_instances.bboxes.tensor, given.gt_instances.bboxes.tensor)
    found.gt_instances.bboxes = found.gt_instances.bboxes.tensor
    found.path.append('b')
    np.add(found.array, 1, out=found.array)
    found.set_metainfo({'more': 1})
    found.pred_instances = InstanceData()
    assert isinstance(given.gt_instances.bboxes, HorizontalBoxes)
    assert given.path == ['a']
    assert not given.array.any()
    assert 'more' not in given
    assert 'pred_instances' not in given


@pytest.mark.parametrize(
    'given',
    [
        [torch.rand(3, 20, 20)],  # float pixels
        torch.zeros(2, 3, 20, 20, dtype=torch.uint8),  # a batch that is one tensor
    ],
)
def test_other_images_go_the_stock_way(given):
    stock, quick = (DetDataPreprocessor(**STOCK['usual']) for _ in range(2))
    vars(quick)['pixel_codes'] = PixelCodes(quick, KINDS[0])
    mix_in(quick, FastPreprocessor, 'Fast')
    wanted, found = (p({'inputs': given})['inputs'] for p in (stock, quick))
    assert torch.equal(found, wanted)
    assert found.dtype == torch.float32
    assert quick({'inputs': images((8, 8))}, training=True)['inputs'].dtype == torch.float32


def test_preprocessors_of_other_kinds_keep_their_images():
    class Own(DetDataPreprocessor):
        def forward(self, data, training=False):
            return super().forward(data, training)

    assert not takes_pixels(Own(**STOCK['usual']))
    assert not takes_pixels(DetDataPreprocessor(mean=[1.0], std=[2.0]))
    assert not takes_pixels(nn.Identity())


def graph_of(*, read_twice=False, kept=False):
    """A convolution behind the codes of an image, and the values of its result."""
    generator = torch.Generator().manual_seed(1)
    constants = {
        'w': torch.randint(-9, 9, (8, 3, 3, 3), generator=generator, dtype=torch.int8),
        'e': torch.zeros(8, dtype=torch.int32),
        'm': torch.full((8,), 2.0**-6),
        'b': torch.zeros(8),
    }
    image, codes = TensorType(), TensorType(2, False, 64)
    nodes = [
        ir.Input('image', image),
        ir.Quantize('codes', codes, 'image'),
        ir.Conv('conv', TensorType(3), 'codes', 'w', 'e', 'm', 'b', padding=(1, 1)),
        ir.Dequantize('values', image, 'conv'),
    ]
    if read_twice:
        nodes.append(ir.Quantize('more', TensorType(2), 'image'))
    outputs = [ir.Ref('values'), *([ir.Ref('image')] if kept else [])]
    return ir.Int8Graph(nodes, outputs, constants)


@pytest.mark.parametrize('backend', ['reference', 'cpu', 'int_mm', 'simulated'])
def test_a_graph_begins_with_the_codes_as_with_the_image(backend):
    graph = graph_of()
    kind = find_entry(graph).type
    executor = build_backend(backend, graph)
    for size in ((5, 7), (16, 16)):
        values = torch.randn(2, 3, *size) * 2
        codes = fp.encode(values, kind.exponent, kind.signed, offset=kind.offset)
        wanted = executor.run(values)[0]
        assert torch.equal(executor.run(codes)[0], wanted)
        assert torch.equal(
            executor.run(codes.contiguous(memory_format=torch.channels_last))[0], wanted
        )
        found, other = executor.codes(codes), executor.codes(values)
        assert all(torch.equal(found[name], other[name]) for name in other)


def test_an_image_that_something_else_reads_stays_an_image():
    assert find_entry(graph_of(read_twice=True)) is None
    assert find_entry(graph_of(kept=True)) is None
    with pytest.raises(ir.GraphError, match='found torch.uint8, wanted torch.float32'):
        build_backend('cpu', graph_of(kept=True)).run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
