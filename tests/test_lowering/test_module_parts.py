"""Modules that become graphs of their own as a detector calls them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmclipq.backends import build_backend
from mmclipq.lowering.module_parts import ModuleParts
from mmclipq.prepare import find_weight_ranges, prepare_model


class Block(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x, scale=1.0):
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        return y * scale, self.linear(y.mean((2, 3)))


class Stubborn(nn.Module):
    """Its course depends on data; its children do not."""

    def __init__(self):
        super().__init__()
        self.block, self.conv = Block(), nn.Conv2d(4, 4, 1)

    def forward(self, x, scale=1.0):
        x, rows = self.block(x, scale)
        return self.conv(x) if rows.sum() > -1e9 else None


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Stubborn()
        self.head = Head()
        self.unused = nn.Conv2d(4, 4, 1)

    def predict(self, x):
        return self.head(self.inner(x, scale=0.5))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture
def detector():
    torch.manual_seed(0)
    model = Detector().eval()
    prepare_model(model)
    find_weight_ranges(model)
    return model


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 4, *size, generator=generator) for size in sizes]


def observe(model, batches):
    parts = ModuleParts(model)
    with torch.no_grad():
        for batch in batches:
            with parts.observing():
                model.predict(batch)
    return parts


def graphs_of(model, batches):
    return {name: part.lowering.finish() for name, part in observe(model, batches).parts.items()}


def test_largest_traceable_modules_become_graphs(detector):
    parts = observe(detector, images((6, 8), (5, 7)))
    assert list(parts.parts) == ['inner.block', 'inner.conv', 'head']
    assert list(parts.refused) == ['inner']
    assert 'inner (Stubborn): found a step that cannot be traced' in parts.refused['inner']
    assert 'a condition on data or sizes' in parts.refused['inner']
    assert not [m for m in detector.modules() if 'forward' in vars(m)]


def test_graphs_give_the_modules_results_on_every_backend(detector):
    graphs = graphs_of(detector, images((6, 8)))
    (x,) = images((4, 5))
    with torch.no_grad():
        wanted = detector.inner.block(x, 0.5)
    found = build_backend('reference', graphs['inner.block'], detector).run(x, 0.5)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.3 * theirs.norm()
    for name in ('simulated', 'int_mm', 'auto'):
        again = build_backend(name, graphs['inner.block'], detector).run(x, 0.5)
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
    assert len(graphs['inner.block'].products()) == 2


def test_another_form_of_call_leaves_the_module_to_its_children(detector):
    parts = ModuleParts(detector)
    (x,) = images((6, 8))
    with torch.no_grad(), parts.observing():
        detector.inner.block(x)
        assert list(parts.parts) == ['inner.block']
        found = detector.inner.block(x, scale=2.0)
    assert 'found calls of several forms' in parts.refused['inner.block']
    assert list(parts.parts) == ['inner.block.conv', 'inner.block.linear']
    assert parts.called == {'inner.block.norm'}
    with torch.no_grad():
        wanted = detector.inner.block(x, scale=2.0)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_trace_with_other_results_is_not_taken(detector):
    def forward(x):
        known = isinstance(x, torch.Tensor)  # what stands for a tensor while tracing is none
        return detector.head.conv(x) * (1 if known else 2)

    detector.head.forward = forward
    parts = observe(detector, images((6, 8)))
    assert 'found a trace with other results than the module' in parts.refused['head']
    assert 'head.conv' in parts.parts
    assert detector.head.forward is forward


def test_calls_on_nothing_are_not_observed(detector):
    parts = ModuleParts(detector)
    with torch.no_grad(), parts.observing():
        detector.inner.conv(torch.randn(2, 4, 3, 3))
        before = parts.parts['inner.conv'].lowering._recorder.batches
        assert detector.inner.conv(torch.zeros(0, 4, 3, 3)).shape == (0, 4, 3, 3)
    assert parts.parts['inner.conv'].lowering._recorder.batches == before == 1


def test_module_outside_is_never_tried(detector):
    parts = ModuleParts(detector, outside=['inner', 'inner.conv'])
    with torch.no_grad(), parts.observing():
        detector.predict(images((6, 8))[0])
    assert list(parts.parts) == ['inner.block', 'head']


class Context(nn.Module):
    """Adds what it makes of the whole image to every pixel, as global context blocks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.context = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.conv(x + self.context(x.mean((2, 3), keepdim=True)))


def test_sum_of_a_pixel_and_an_image_is_no_residual(detector):
    torch.manual_seed(0)
    detector.inner = Context()
    detector.predict = lambda x: detector.head(detector.inner(x))
    prepare_model(detector)
    find_weight_ranges(detector)
    graphs = graphs_of(detector, images((6, 8)))
    (x,) = images((4, 5))
    with torch.no_grad():
        wanted = detector.inner(x)
    runs = []
    for name in ('reference', 'simulated', 'auto'):
        backend = build_backend(name, graphs['inner'], detector)
        runs.append((backend.codes(x), backend.run(x)))
    codes, found = runs[0]
    assert codes['add'].shape == x.shape
    assert codes['inner.context'].shape == (1, 4, 1, 1)
    assert (found - wanted).norm() < 0.3 * wanted.norm()
    for again, result in runs[1:]:
        assert torch.equal(result, found)
        assert again.keys() == codes.keys()
        assert all(torch.equal(again[key], value) for key, value in codes.items())


class Masked(nn.Module):
    """A float step that reads some channels of a convolution, as masks of deformable ones are."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 27, 3, padding=1), nn.Conv2d(9, 4, 1)

    def forward(self, x):
        return self.other(torch.log1p(self.conv(x)[:, 18:].sigmoid()))


def test_float_steps_round_alike_however_tensors_lie(detector):
    torch.manual_seed(0)
    detector.inner = Masked()
    detector.predict = lambda x: detector.head(detector.inner(x))
    prepare_model(detector)
    find_weight_ranges(detector)
    graphs = graphs_of(detector, images((33, 35)))

    def run(name):
        backend, found = build_backend(name, graphs['inner'], detector), {}
        backend.run(*images((31, 37)), observe=lambda node, value: found.update({node.name: value}))
        return found

    values = run('reference'), run('auto')
    for name in ('sigmoid', 'log1p'):
        assert torch.equal(values[0][name], values[1][name])
        assert values[0][name].shape == (1, 9, 31, 37)
