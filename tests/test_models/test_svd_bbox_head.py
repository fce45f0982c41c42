"""SVDBBoxHead: a drop-in whose factors come from a dense checkpoint."""

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmclipq.errors import ClipQError
from mmclipq.models.roi_heads.bbox_heads.svd_bbox_head import SVDLinear, rank_for_energy

COMMON = dict(in_channels=4, roi_feat_size=3, fc_out_channels=16, num_classes=5)


def dense_head(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type='Shared2FCBBoxHead', **COMMON, **kwargs))


def svd_head(**kwargs) -> nn.Module:
    torch.manual_seed(1)
    return MODELS.build(dict(type='mmclipq.SVDBBoxHead', **COMMON, **kwargs))


def test_full_rank_gives_the_dense_outputs():
    dense, svd = dense_head(), svd_head(svd_rank=16)
    svd.load_state_dict(dense.state_dict())
    x = torch.randn(7, 4, 3, 3)
    for wanted, found in zip(dense(x), svd(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_factors_are_the_best_of_their_rank():
    dense, svd = dense_head(), svd_head(svd_rank=5)
    svd.load_state_dict(dense.state_dict())
    weight = dense.shared_fcs[0].weight.detach()
    layer = svd.shared_fcs[0]
    error = (layer.second.weight @ layer.first.weight - weight).square().sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(weight)[5:].square().sum())
    assert torch.equal(layer.second.bias, dense.shared_fcs[0].bias)
    # Both factors carry half of the singular values, so their ranges are alike.
    torch.testing.assert_close(layer.first.weight.norm(dim=1), layer.second.weight.norm(dim=0))


def test_own_checkpoint_loads_as_it_is():
    first, second = svd_head(svd_rank=5), svd_head(svd_rank=5)
    first.load_state_dict(dense_head().state_dict())
    second.load_state_dict(first.state_dict())
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_rank_of_faster_rcnn_removes_what_the_paper_says():
    head = MODELS.build(
        dict(type='mmclipq.SVDBBoxHead', in_channels=256, roi_feat_size=7, num_classes=20)
    )
    dense = sum(fc.in_features * fc.out_features for fc in head.shared_fcs)
    factored = sum(p.numel() for n, p in head.shared_fcs.named_parameters() if 'weight' in n)
    assert dense - factored == 9_895_936


def test_energy_chooses_the_rank_and_keeps_the_parameter_objects():
    dense, svd = dense_head(), svd_head(svd_energy=0.8)
    held = [id(p) for p in svd.parameters()]
    svd.load_state_dict(dense.state_dict())
    assert [id(p) for p in svd.parameters()] == held
    for i in range(2):
        values = torch.linalg.svdvals(dense.shared_fcs[i].weight).double().square()
        rank = svd.shared_fcs[i].first.weight.shape[0]
        assert values[:rank].sum() >= 0.8 * values.sum() > values[: rank - 1].sum()
    # Its own checkpoint decides the rank of another instance.
    other = svd_head(svd_energy=0.8)
    other.load_state_dict(svd.state_dict())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(other(x)[0], svd(x)[0])


@pytest.mark.parametrize('proposals', [0, 1, 1000])
def test_any_number_of_proposals(proposals):
    scores, boxes = svd_head(svd_rank=5)(torch.randn(proposals, 4, 3, 3))
    assert scores.shape == (proposals, 6)
    assert boxes.shape == (proposals, 20)


def test_branch_fcs_are_factored_too():
    head = svd_head(num_cls_fcs=1, num_reg_fcs=2, svd_rank=4)
    assert len(head.shared_fcs) == 0
    for fcs in (head.cls_fcs, head.reg_fcs):
        assert all(isinstance(fc, SVDLinear) for fc in fcs)
    assert head(torch.randn(3, 4, 3, 3))[0].shape == (3, 6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(svd_rank=17), r'shared_fcs.0: found rank 17, wanted one from 1 to 16'),
        (dict(svd_rank=0), r'shared_fcs.0: found rank 0'),
        (dict(svd_rank=[4, 5, 6]), r'found 3 ranks, wanted one for each of the 2'),
        (dict(svd_rank={'shared_fcs.0': 4}), r'wanted them for .*shared_fcs.1'),
        (dict(svd_energy=1.5), r'found svd_energy=1.5'),
    ],
)
def test_bad_ranks_are_named(options, message):
    with pytest.raises(ClipQError, match=message):
        svd_head(**options)


def test_rank_for_energy_at_its_edges():
    values = torch.tensor([3.0, 4.0, 0.0])
    assert rank_for_energy(values, 0.64) == 1
    assert rank_for_energy(values, 0.65) == 2
    assert rank_for_energy(values, 1.0) == 2
