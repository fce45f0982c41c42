"""Compares two backends on a whole stock detector, code for code."""

import torch
from mmengine.hub import get_config
from torch import nn

from mmclipq.apis import build_detector, quantize
from mmclipq.backends import build_backend

DETECTORS = {
    'darknet53': 'yolo/yolov3_d53_8xb8-320-273e_coco.py',
    'mobilenetv2': 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'faster_rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'ssd': 'ssd/ssd300_coco.py',
}
ROIS = torch.tensor([[0.0, 3, 5, 50, 60], [0, 20, 10, 22, 64], [0, 0, 0, 90, 64]])


def quantized_detector(name):
    """A detector with random weights and batch norms, its graphs, and image shapes it takes."""
    torch.manual_seed(0)
    cfg = get_config(f'mmdet::{DETECTORS[name]}')
    if name == 'faster_rcnn':
        cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=40)
    model = build_detector(cfg.model, random=True).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
        elif type(layer).__name__ == 'L2Norm':
            nn.init.constant_(layer.weight, 20)
    side = 300 if name == 'ssd' else 64
    quantized = quantize(model, [torch.randn(1, 3, side, side)])
    shapes = [(1, 300, 300)] if name == 'ssd' else [(1, 64, 96), (2, 96, 64)]
    if name in ('retinanet', 'faster_rcnn'):  # others need whole multiples of 32 pixels
        shapes.append((1, 61, 83))
    return model, quantized, shapes


def leaves(tree):
    """The tensors in nested dicts and sequences."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for item in items for leaf in leaves(item)]


class Comparison:
    """Runs the graphs of a detector on a backend and on the reference.

    Args:
        model, quantized: The detector and its graphs.
        backend: Name of the backend.
        device: Where it runs.
    """

    def __init__(self, model, quantized, backend, device='cpu'):
        self.graphs = quantized.graphs
        islands = model.to(device)
        self.ours = [build_backend(backend, graph, islands, device) for graph in self.graphs]
        self.theirs = [build_backend('reference', graph, islands, device) for graph in self.graphs]

    def check(self, shape, runs=2):
        """Every code of every graph, and every output of so many runs, for images ``(N, H, W)``."""
        inputs = wanted_inputs = (2 * torch.randn(shape[0], 3, *shape[1:]),)
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            wanted, found = theirs.codes(*wanted_inputs), ours.codes(*inputs)
            assert found.keys() == wanted.keys()  # what runs in Python comes in another order
            assert not [name for name in found if not torch.equal(found[name], wanted[name])]
            # Without an observer nodes may be fused, and launches replayed.
            wanted = theirs.run(*wanted_inputs)
            for _ in range(runs):
                found = ours.run(*inputs)
                pairs = zip(leaves(found), leaves(wanted), strict=True)
                assert all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)
            if 'features' in found:
                inputs = *found['features'][:4], ROIS
                wanted_inputs = *wanted['features'][:4], ROIS
