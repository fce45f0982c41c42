"""Detectors with fewer channels than their config says."""

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmclipq.apis import build_detector
from mmclipq.apis.file_config import check_config
from mmclipq.errors import ClipQError
from mmclipq.graph.container import ArtifactError
from mmclipq.models.narrow import narrow, widths_of


class Net(nn.Sequential):
    """Kinds of layers whose widths change, one behind the other."""

    def __init__(self, *widths: int) -> None:
        a, b, c = widths
        super().__init__(
            nn.Conv2d(3, a, 3, padding=1),
            nn.BatchNorm2d(a),
            nn.Conv2d(a, a, 3, groups=a),
            nn.Conv2d(a, b, 1, groups=2),
            nn.GroupNorm(2, b),
            nn.ConvTranspose2d(b, c, 2, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(c, 5),
        )


def test_layers_are_those_that_were_built_narrow():
    torch.manual_seed(0)
    wide, wanted = Net(8, 12, 6).eval(), Net(4, 8, 5).eval()
    parameters = {name: id(value) for name, value in wide.named_parameters()}
    widths = widths_of(wide, wanted.state_dict())
    assert widths == {
        '0': [4, 3], '1': [4], '2': [4, 1], '3': [8, 2], '4': [8], '5': [8, 5], '8': [5, 5],
    }  # fmt: skip
    narrow(wide, widths)
    assert repr(wide) == repr(wanted)
    assert {name: id(value) for name, value in wide.named_parameters()} == parameters
    wide.load_state_dict(wanted.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(wide(x), wanted(x))


def test_values_are_the_first_ones():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    before = layer[0].weight.detach().clone()
    narrow(layer, {'0': [2, 3]})
    assert torch.equal(layer[0].weight, before[:2])
    assert layer[0].bias.shape == (2,)


@pytest.mark.parametrize(
    ('widths', 'message'),
    [
        ({'7': [1]}, "found '7', wanted a convolution"),
        ({'nowhere': [1, 1]}, "found 'nowhere'"),
        ({'0': [9, 3]}, r'found \[9, 3\] for .0., wanted at most \[8, 3\]'),
        ({'1': [4], '0': [0, 3]}, r'found \[0, 3\]'),
        ({'1': [4, 4]}, r'found \[4, 4\]'),
        ({'1': [2.0]}, r'found \[2.0\]'),
    ],
)
def test_widths_that_do_not_fit_change_nothing(widths, message):
    net = Net(8, 12, 6)
    with pytest.raises(ClipQError, match=f'widths: {message}'):
        narrow(net, widths)
    assert repr(net) == repr(Net(8, 12, 6))


def test_a_config_builds_the_stock_class_with_its_widths(cfg):
    widths = {'bbox_head.convs_bridge.0.conv': [40, 96], 'bbox_head.convs_bridge.0.bn': [40]}
    section = {'type': 'mmclipq.NarrowDetector', 'detector': cfg.model.to_dict(), 'widths': widths}
    check_config(section, 'a.clipq', 'model')
    found, stock = build_detector(section), build_detector(cfg.model)
    assert type(found) is type(stock)
    state = {name: value.shape for name, value in found.state_dict().items()}
    assert state['bbox_head.convs_bridge.0.conv.weight'][:2] == (40, 96)
    assert widths_of(stock, found.state_dict()) == widths
    assert MODELS.get('NarrowDetector') is MODELS.get('mmclipq.NarrowDetector')


def test_what_it_builds_is_checked_like_any_config():
    section = {'type': 'mmclipq.NarrowDetector', 'detector': {'type': 'os.system'}, 'widths': {}}
    with pytest.raises(ArtifactError, match="type 'os.system', wanted a registered name"):
        check_config(section, 'a.clipq', 'model')
