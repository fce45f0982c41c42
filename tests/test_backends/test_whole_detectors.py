"""Whole stock detectors: products of codes and products of values agree in every tensor."""

import pytest
import torch
from mmengine.hub import get_config
from torch import nn
from whole_detector import DETECTORS, leaves

from mmclipq.apis import build_detector, quantize
from mmclipq.backends import BACKENDS, build_backend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir


@pytest.fixture(scope='module', params=['darknet53', 'mobilenetv2', 'retinanet'])
def quantized(request):
    """A detector with random weights and batch norms, and its integer graph."""
    torch.manual_seed(0)
    model = build_detector(get_config(f'mmdet::{DETECTORS[request.param]}').model, random=True)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    images = [torch.randn(1, 3, 64, 96), torch.randn(2, 3, 96, 64)]
    return model, quantize(model, images).graph


@pytest.mark.parametrize('shape', [(1, 64, 96), (3, 64, 64), (1, 96, 160)])
def test_simulation_equals_the_reference_in_every_tensor(quantized, shape):
    model, graph = quantized
    batch, *size = shape
    # Twice the calibrated spread, so that ranges saturate.
    image = 2 * torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
    wanted = build_backend('reference', graph, model).codes(image)
    found = build_backend('simulated', graph, model).codes(image)
    assert list(found) == list(wanted)
    assert set(wanted) == {node.name for node in graph.nodes if node.type.is_codes}
    differing = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not differing
    for name, codes in wanted.items():
        assert codes.dtype == (torch.int8 if graph.tensors[name].signed else torch.uint8)
    # Not the agreement of constants: most tensors use a good part of their codes.
    used = sorted(len(codes.unique()) for codes in wanted.values())
    assert used[len(used) // 2] > 30


def test_a_batch_is_its_images(quantized):
    model, graph = quantized
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    backend = build_backend('reference', graph, model)
    together = backend.codes(images)
    for index in range(3):
        alone = backend.codes(images[index : index + 1])
        assert all(torch.equal(alone[name][0], together[name][index]) for name in alone)


def test_run_gives_the_values_of_the_codes(quantized):
    model, graph = quantized
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    results = {}
    backend = build_backend('reference', graph, model)
    outputs = backend.run(image, observe=lambda node, value: results.update({node.name: value}))
    for ref, value in zip(ir.iter_refs(graph.outputs), leaves(outputs), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, results[ref.name])


def test_unknown_backend():
    graph = ir.Int8Graph((ir.Input('x', ir.FLOAT),), ir.Ref('x'), {})
    with pytest.raises(ClipQError, match=r"found backend 'fpga', wanted one of .*'reference'"):
        build_backend('fpga', graph)
    assert type(build_backend('auto', graph)) in BACKENDS.values()
