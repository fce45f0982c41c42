"""Steps that read given codes give what they give in the whole graph."""

import torch

from mmclipq.backends import build_backend
from mmclipq.evaluation.isolated import isolated
from mmclipq.graph import ir


def test_every_step_reads_what_it_is_given(quantized, model):
    graph = quantized.graph
    apart = isolated(graph)
    image = torch.rand(1, 3, 96, 128)
    codes = build_backend('reference', graph, model).codes(image)
    backend = build_backend('reference', apart, model)
    found = backend.run(image, *codes.values())
    assert list(found) == list(codes)
    assert all(torch.equal(found[name], codes[name]) for name in codes)

    # Other codes in one tensor change its readers alone.
    changed = dict(codes)
    name = 'backbone.conv1.conv'
    changed[name] = torch.zeros_like(codes[name])
    found = backend.run(image, *changed.values())
    differing = {key for key in codes if not torch.equal(found[key], codes[key])}
    readers = {n.name for n in graph.nodes if name in n.inputs and not isinstance(n, ir.Input)}
    assert differing == readers
