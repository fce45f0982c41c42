"""Times of single nodes and layers, by a clock that counts how often it is read."""

import itertools

import torch

from mmclipq.apis.calibration_data import config_batches
from mmclipq.apis.quantize_model import preprocessed
from mmclipq.backends import build_backend
from mmclipq.benchmark.node_times import layer_times, node_times
from mmclipq.ops.program import Program


def ticking():
    counter = itertools.count()
    return lambda: float(next(counter))


def test_every_node_has_a_time_and_everything_is_put_back(cfg, model, quantized):
    ((image, _),) = preprocessed(model, config_batches(cfg, 1))
    nodes = {(0, node.name) for node in quantized.graph.nodes}
    for name in ('reference', 'auto'):
        backend = build_backend(name, quantized.graph, model)
        stock, run = Program.run, backend.run
        times = node_times(lambda backend=backend: backend.run(image), [backend], 2, ticking())
        assert times.keys() == nodes
        assert all(value >= 1000 for value in times.values())  # at least one tick
        assert Program.run is stock
        assert backend.run == run


def test_a_layer_called_twice_counts_twice():
    layer = torch.nn.Linear(2, 2)
    twice, once = torch.nn.Sequential(layer, layer), torch.nn.Linear(2, 2)
    x = torch.zeros(1, 2)
    times = layer_times(lambda: once(twice(x)), {'twice': layer, 'once': once}, 3, ticking())
    assert times == {'twice': 2000.0, 'once': 1000.0}
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
