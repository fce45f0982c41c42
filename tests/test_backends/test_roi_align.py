"""The float32 definition of RoIAlign against MMCV's operator on the same values."""

import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from mmclipq.backends.reference import to_codes
from mmclipq.backends.roi_align import roi_align_average, roi_levels
from mmclipq.graph import ir


def random_rois(count, images, width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 5, generator=generator)
    size = torch.tensor([width, height]) * u[:, 3:] ** 3
    corner = u[:, 1:3] * torch.tensor([width, height]) - size / 3
    image = (u[:, :1] * images).floor()
    return torch.cat([image, corner, corner + size], 1)


@pytest.fixture
def levels():
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 8, 100, 152), (2, 8, 50, 76), (2, 8, 25, 38), (2, 8, 13, 19)]
    return [torch.randint(-128, 128, s, generator=generator).float() / 16 for s in shapes]


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_within_one_step_of_mmcv(levels, sampling_ratio, aligned):
    strides = [4, 8, 16, 32]
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=sampling_ratio, aligned=aligned)
    extractor = SingleRoIExtractor(layer, out_channels=8, featmap_strides=strides)
    rois = random_rois(400, 2, 608, 400)
    kind = ir.TensorType(3)
    node = ir.RoIAlign(
        'y', kind, ('a', 'b', 'c', 'd'), 'rois', (7, 7), tuple(1 / s for s in strides),
        sampling_ratio, aligned,
    )  # fmt: skip
    assert torch.equal(roi_levels(rois, node), extractor.map_roi_levels(rois, 4))
    found, wanted = roi_align_average(levels, rois, node), extractor(levels, rois)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    difference = (to_codes(found, kind).int() - to_codes(wanted, kind).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_values_scale_with_powers_of_two(levels):
    """Codes and values give the same average, which lets both run in one order."""
    node = ir.RoIAlign('y', ir.TensorType(3), ('a',), 'rois', (7, 7), (0.25,))
    rois = random_rois(60, 2, 608, 400, seed=3)
    small = roi_align_average([levels[0] * 2.0**-30], rois, node)
    assert torch.equal(small * 2.0**30, roi_align_average(levels[:1], rois, node))


def test_many_regions_are_split(levels, monkeypatch):
    from mmclipq.backends import roi_align

    node = ir.RoIAlign('y', ir.TensorType(3), ('a',), 'rois', (7, 7), (0.25,))
    rois = random_rois(50, 2, 608, 400, seed=4)
    whole = roi_align_average(levels[:1], rois, node)
    monkeypatch.setattr(roi_align, '_CHUNK', 1000)
    assert torch.equal(roi_align_average(levels[:1], rois, node), whole)


def test_mmcv_operator_is_the_stock_one():
    """What the capture recognises: a subclass may compute something else."""
    assert type(SingleRoIExtractor(dict(type='RoIAlign', output_size=7), 8, [4]).roi_layers[0]) is (
        RoIAlign
    )
