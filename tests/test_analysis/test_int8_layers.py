"""One layer alone in int8 is the graph's own layer, and the detector is put back."""

import pytest
import torch

from mmclipq import fixed_point as fp
from mmclipq.analysis.int8_layers import Int8Layers
from mmclipq.apis import build_detector
from mmclipq.apis.quantize_model import preprocessed
from mmclipq.backends import build_backend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.prepare import prepare_model


def test_layers_are_those_of_the_graph_in_its_order(layers, parts):
    products = parts.graph.products()
    assert layers.names == list(dict.fromkeys(n.weight[: -len('.weight')] for n in products))
    assert all(call.dense for name in layers.names for call in layers.calls(name))


def test_a_rounded_layer_computes_the_codes_of_the_graph(layers, parts, images):
    """On what the graph's layer reads; float32 rounds in another order, so one code in 1,000 may
    be its neighbour."""
    ((inputs, _),) = preprocessed(layers.model, images.sample(2).batches())
    backend = build_backend('reference', parts.graph, layers.model)
    codes = backend.codes(inputs)
    compared = 0
    for name in layers.names:
        for call in layers.calls(name):
            node = call.node
            if node.residual or node.activation != 'identity' or not node.type.is_codes:
                continue
            x = fp.decode(codes[node.x], call.exponent, offset=call.kind.offset)
            layer = layers.layer(name)
            with torch.no_grad():
                result = layers.product(name, layers.int8_weight(name), call, layer.forward, x)
                kind, v = node.type, call.normed(result, layer.bias)
            found = fp.encode(v, kind.exponent, kind.signed, offset=kind.offset)
            apart = (found.int() - codes[node.name].int()).abs()
            assert int(apart.max()) <= 1
            assert int((apart > 0).sum()) * 1000 <= apart.numel() + 1000
            compared += 1
    assert compared > 5


def test_only_the_chosen_layers_change(layers, images):
    ((inputs, _),) = preprocessed(layers.model, images.sample(1).batches())
    first, second = layers.names[0], layers.names[1]
    seen = {}

    def remember(name):
        return lambda layer, given, result: seen.update({name: result.clone()})

    handles = [layers.layer(n).register_forward_hook(remember(n)) for n in (first, second)]
    with torch.no_grad():
        layers.model(inputs, mode='tensor')
        plain = dict(seen)
        with layers.rounding([second]):
            layers.model(inputs, mode='tensor')
    for handle in handles:
        handle.remove()
    assert torch.equal(plain[first], seen[first])
    assert not torch.equal(plain[second], seen[second])
    call = layers.calls(second)[0]
    assert isinstance(call.node, ir.Conv)


def state(model):
    return [
        (name, module.training, sorted(vars(module)), getattr(module, 'input_exponent', None),
         len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]  # fmt: skip


def test_the_detector_is_put_back_also_when_interrupted(layers, images):
    layers.model.train()
    before, parameters = state(layers.model), [p.clone() for p in layers.model.parameters()]

    def interrupted(name, call, forward, *inputs):
        forward(*inputs)
        if name == layers.names[7]:
            raise KeyboardInterrupt
        return forward(*inputs)

    for inside in (
        lambda: layers.rounding(layers.names),
        lambda: layers.watching(interrupted),
    ):
        with pytest.raises(KeyboardInterrupt), inside():  # noqa: PT012
            images.detect(layers.model)
            raise KeyboardInterrupt
        assert state(layers.model) == before
    assert all(map(torch.equal, parameters, layers.model.parameters()))
    layers.model.eval()


def test_parts_of_another_detector_are_refused(load_config, parts):
    cfg = load_config('quickstart/yolov3_mobilenetv2_digits.py')
    cfg.model.bbox_head.num_classes = 3
    other = build_detector(cfg.model, random=True)
    prepare_model(other)
    with pytest.raises(ClipQError, match=r'found the int8 layer bbox_head.convs_pred.0, which'):
        Int8Layers(other, parts)


def test_two_stages_and_shared_layers(load_config, images):
    """A Faster R-CNN, whose RPN runs the same layers on every level and whose boxes are a graph of
    their own."""
    from mmclipq.analysis.signals import measure_signals
    from mmclipq.apis import quantize
    from mmclipq.apis.calibration_data import config_batches

    cfg = load_config('quickstart/faster_rcnn_mobilenetv2_digits.py')
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # else hardly anything is left in deep layers
            torch.nn.init.uniform_(norm.running_var, 0.01, 0.1)
    parts = quantize(model, config_batches(cfg, 2))
    layers = Int8Layers(model, parts)
    assert len(layers.calls('rpn_head.rpn_conv')) > 1
    assert not layers.calls('roi_head.bbox_head.fc_cls')[0].dense
    backend = build_backend('auto', parts.graph, model)
    found = measure_signals(layers, images.sample(1).batches(), backend)
    read = found['rpn_head.rpn_conv'].read
    assert read.signal > read.noise > 0
    # Without regions nothing is known of the boxes' layers but their weights.
    assert all(signals.weight.decibels > 20 for signals in found.values())
    assert found['roi_head.bbox_head.fc_cls'].read.signal == 0
