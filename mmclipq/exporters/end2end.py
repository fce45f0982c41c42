"""Whole detectors as one ONNX model: image in, boxes, scores and labels out.

Decoding and suppression follow MMDetection's ``predict`` in standard operators. Boxes are clipped
to the input tensor, where MMDetection clips them to the image inside its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.models.dense_heads import AnchorHead, RPNHead, YOLOV3Head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import nn

from ..graph import ir
from .boxes import (
    FLOAT,
    above,
    best,
    decode_deltas,
    decode_yolo,
    gather_rows,
    grid_anchors,
    image_size,
    large_enough,
    rows_of,
    suppress,
)
from .builder import DEFAULT_IR, DEFAULT_OPSET, ExportError, OnnxBuilder
from .placement import check_placement
from .qdq import QdqWriter
from .targets import DEFAULT_TARGET, target_of

_ADVICE = 'export without --end2end and decode with MMDetection'


class _Detections:
    """Adds the postprocessing of one detector to a builder."""

    def __init__(self, g: OnnxBuilder, image: str, detector: nn.Module) -> None:
        self.g, self.detector = g, detector
        self.size = image_size(g, image)

    def _levels(self, head: BaseDenseHead, maps: Sequence[str]) -> list[str]:
        """Anchors ``(H * W * A, 4)`` of each level."""
        generator = head.prior_generator
        return [
            grid_anchors(self.g, level, base.cpu().numpy(), stride)
            for level, base, stride in zip(
                maps, generator.base_anchors, generator.strides, strict=True
            )
        ]

    def anchor_head(
        self, head: AnchorHead, maps: Any, cfg: Any, score_thr: float, iou: float
    ) -> tuple[str, str, str]:
        """RetinaNet, SSD and, with ``score_thr`` 0 and levels for labels, RPN."""
        g, is_rpn = self.g, isinstance(head, RPNHead)
        found: list[tuple[str, str, str]] = []
        anchors = self._levels(head, maps[0])
        for level, (cls, reg, priors) in enumerate(zip(*maps, anchors, strict=True)):
            logits = rows_of(g, cls, head.cls_out_channels)
            if head.use_sigmoid_cls:
                probability, classes = g.op('Sigmoid', logits), head.cls_out_channels
            else:
                classes = head.cls_out_channels - 1
                probability = _foreground(g, logits, classes, 2)
            flat = g.op('Reshape', above(g, probability, score_thr), g.integers(0, -1))
            value, place = best(g, flat, cfg.get('nms_pre', -1))
            count = g.constant(classes, np.int64)
            which = g.op('Div', place, count)
            deltas = gather_rows(g, rows_of(g, reg, 4), which, 4)
            chosen = g.op('Gather', priors, which, axis=0)
            decoded = decode_deltas(g, chosen, deltas, head.bbox_coder, self.size)
            label = g.op('Sub', place, g.op('Mul', which, count))
            # RPN suppresses within each level.
            if is_rpn and classes == 1:
                label = g.op('Add', label, g.constant(level, np.int64))
            found.append((decoded, value, label))
        boxes, scores, labels = (g.op('Concat', *v, axis=1) for v in zip(*found, strict=True))
        scores = large_enough(g, boxes, scores, cfg.get('min_bbox_size', -1))
        return suppress(g, boxes, scores, labels, iou, cfg.max_per_img)

    def yolo(
        self, head: YOLOV3Head, maps: Sequence[str], score_thr: float, iou: float
    ) -> tuple[str, str, str]:
        """YOLOv3: the best pairs of box and class over all levels, times the box's objectness."""
        g, cfg, classes = self.g, head.test_cfg, head.num_classes
        found: list[tuple[str, str, str]] = []
        strides = head.featmap_strides
        for level, anchors, stride in zip(maps, self._levels(head, maps), strides, strict=True):
            rows = rows_of(g, level, head.num_attrib)
            xy, wh, objectness, logits = g.ops(
                'Split', 4, rows, g.integers(2, 2, 1, classes), axis=2
            )
            decoded = decode_yolo(g, anchors, g.op('Sigmoid', xy), wh, float(stride))
            found.append((decoded, g.op('Sigmoid', objectness), g.op('Sigmoid', logits)))
        boxes, objects, scores = (g.op('Concat', *v, axis=1) for v in zip(*found, strict=True))
        scores = above(g, scores, score_thr)
        if (lowest := cfg.get('conf_thr', -1)) > 0:
            sure = g.op('GreaterOrEqual', objects, g.floats(lowest))
            scores = g.op('Where', sure, scores, g.floats(0.0))
        flat = g.op('Reshape', scores, g.integers(0, -1))
        value, place = best(g, flat, cfg.get('nms_pre', -1))
        count = g.constant(classes, np.int64)
        which = g.op('Div', place, count)
        label = g.op('Sub', place, g.op('Mul', which, count))
        objects = g.op('Squeeze', gather_rows(g, objects, which, 1), g.integers(2))
        boxes = gather_rows(g, boxes, which, 4)
        value = large_enough(g, boxes, g.op('Mul', value, objects), cfg.get('min_bbox_size', -1))
        return suppress(g, boxes, value, label, iou, cfg.max_per_img)

    def regions(self, boxes: str) -> str:
        """Proposals ``(N, P, 4)`` as regions ``(N * P, 5)`` with the image's number."""
        g = self.g
        zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
        count = g.op('Squeeze', g.op('Shape', boxes, start=0, end=1), g.integers(0))
        numbers = g.op('Cast', g.op('Range', zero, count, one), to=FLOAT)
        numbers = g.op('Reshape', numbers, g.integers(-1, 1, 1))
        shape = g.op('Concat', g.op('Shape', boxes, start=0, end=2), g.integers(1), axis=0)
        both = g.op('Concat', g.op('Expand', numbers, shape), boxes, axis=2)
        return g.op('Reshape', both, g.integers(-1, 5))

    def box_head(
        self, head: BBoxHead, found: Sequence[str], proposals: tuple[str, str], cfg: Any,
        score_thr: float, iou: float,
    ) -> tuple[str, str, str]:  # fmt: skip
        """Faster R-CNN's second stage from its logits and deltas of all proposals."""
        g, classes = self.g, head.num_classes
        logits, deltas = found
        boxes, sure = proposals
        outer = g.op('Shape', boxes, start=0, end=2)
        scores = _foreground(g, logits, classes, 1)
        scores = g.op('Reshape', scores, g.op('Concat', outer, g.integers(classes), axis=0))
        # Places without a proposal give no detection.
        real = g.op('Unsqueeze', g.op('Greater', sure, g.floats(0.0)), g.integers(2))
        scores = g.op('Where', real, above(g, scores, score_thr), g.floats(0.0))
        kinds = 1 if head.reg_class_agnostic else classes
        shape = g.op('Concat', outer, g.integers(kinds, 4), axis=0)
        deltas = g.op('Reshape', deltas, shape)
        priors = g.op('Unsqueeze', boxes, g.integers(2))
        decoded = decode_deltas(g, priors, deltas, head.bbox_coder, self.size)
        decoded = g.op('Expand', decoded, g.integers(1, 1, classes, 1))
        scores = g.op('Reshape', scores, g.integers(0, -1))
        decoded = g.op('Reshape', decoded, g.integers(0, -1, 4))
        labels = g.constant(np.arange(classes).reshape(1, 1, -1), np.int64)
        ones = g.op('Concat', outer, g.integers(1), axis=0)
        labels = g.op('Reshape', g.op('Expand', labels, ones), g.integers(0, -1))
        return suppress(g, decoded, scores, labels, iou, cfg.max_per_img)


def _foreground(g: OnnxBuilder, logits: str, classes: int, axis: int) -> str:
    """Softmax over the last axis without the background, which comes last."""
    every = g.op('Softmax', logits, axis=axis)
    return g.op('Slice', every, g.integers(0), g.integers(classes), g.integers(axis))


def _refusal(detector: nn.Module, parts: Sequence[ir.Int8Graph]) -> str:
    """Why the detector has no end-to-end form; empty if it has one."""
    roi: StandardRoIHead = getattr(detector, 'roi_head', None)
    head: BaseDenseHead = getattr(detector, 'rpn_head' if roi is not None else 'bbox_head', None)
    outputs = parts[0].outputs
    if not isinstance(outputs, dict) or 'head' not in outputs:
        return f'a dense part without its head ({type(head).__name__})'
    plain = type(head)._predict_by_feat_single if isinstance(head, AnchorHead) else None
    wanted = (BaseDenseHead._predict_by_feat_single, RPNHead._predict_by_feat_single)
    if not isinstance(head, YOLOV3Head) and (
        plain not in wanted
        or len(outputs['head']) != 2
        or type(head.bbox_coder) is not DeltaXYWHBBoxCoder
        or head.bbox_coder.add_ctr_clamp
    ):
        return f'the dense head {type(head).__name__} or its box coder'
    if roi is None:
        return _suppression(head.test_cfg)
    if not isinstance(roi, StandardRoIHead) or len(parts) != 2 or roi.with_mask:
        return f'the RoI head {type(roi).__name__} with {len(parts) - 1} integer stages'
    box = roi.bbox_head
    if type(box.bbox_coder) is not DeltaXYWHBBoxCoder or box.custom_cls_channels:
        return f'the box head {type(box).__name__}'
    return _suppression(head.test_cfg) or _suppression(roi.test_cfg)


def _suppression(cfg: Any) -> str:
    kind = (cfg.get('nms') or {}).get('type', 'nms')
    return '' if kind == 'nms' and 'iou_threshold' in cfg.nms else f'suppression {kind!r}'


def end2end_model(
    detector: nn.Module,
    graphs: Sequence[ir.Int8Graph],
    metadata: dict[str, str],
    *,
    score_thr: float | None = None,
    iou_thr: float | None = None,
    target: str = DEFAULT_TARGET,
    opset: int = DEFAULT_OPSET,
    ir_version: int = DEFAULT_IR,
) -> Any:
    """One ONNX ``ModelProto`` from ``image`` ``(N, 3, H, W)``, float32 and normalized, to ``boxes``
    ``(N, K, 4)`` float32 as x1, y1, x2, y2 in pixels, ``scores`` ``(N, K)`` float32 and ``labels``
    ``(N, K)`` int64, sorted by score. Places that are left over have score 0 and label -1.

    Args:
        detector: The :class:`mmclipq.Int8Detector` of the file.
        graphs: Its graphs.
        metadata: Strings by key.
        score_thr: Lowest score, by default that of the config's ``test_cfg``.
        iou_thr: IoU of the last suppression, likewise.
        target: What runs the file, see :mod:`mmclipq.exporters.targets`.
        opset: Version of the operator set.
        ir_version: Version of the file format.

    Raises:
        ExportError: naming what has no form in standard operators.
    """
    if reason := _refusal(detector, graphs):
        raise ExportError(f'found {reason}, which has no end-to-end form; {_ADVICE}')
    g = OnnxBuilder(opset, ir_version)
    image = g.input('image', np.float32, ['batch', 3, 'height', 'width'])
    writer = QdqWriter(g, target, detector)
    names = writer.add(graphs[0], [image])
    maps = ir.map_refs(graphs[0].outputs['head'], lambda ref: names[ref.name])
    post = _Detections(g, image, detector)
    roi: StandardRoIHead = getattr(detector, 'roi_head', None)
    two_stage = roi is not None
    dense: BaseDenseHead = detector.rpn_head if two_stage else detector.bbox_head
    cfg = roi.test_cfg if two_stage else dense.test_cfg
    score = cfg.get('score_thr', 0.0) if score_thr is None else score_thr
    iou = cfg.nms['iou_threshold'] if iou_thr is None else iou_thr
    if two_stage:
        overlap = dense.test_cfg.nms['iou_threshold']
        boxes, sure, _ = post.anchor_head(dense, maps, dense.test_cfg, 0.0, overlap)
        inputs = [node for node in graphs[1].nodes if isinstance(node, ir.Input)]
        levels = [names[ref.name] for ref in graphs[0].outputs['features']][: len(inputs) - 1]
        found = writer.add(graphs[1], [*levels, post.regions(boxes)], 'boxes.')
        logits = [found[ref.name] for ref in graphs[1].outputs]
        result = post.box_head(roi.bbox_head, logits, (boxes, sure), cfg, score, iou)
    elif isinstance(dense, YOLOV3Head):
        result = post.yolo(dense, maps[0], score, iou)
    else:
        result = post.anchor_head(dense, maps, cfg, score, iou)
    kinds = np.float32, np.float32, np.int64
    for tensor, name, kind in zip(result, ('boxes', 'scores', 'labels'), kinds, strict=True):
        g.output(tensor, name, kind, None)
    head = roi.bbox_head if two_stage else dense
    facts = {
        'part': 'end2end',
        'score_thr': str(score),
        'iou_thr': str(iou),
        'clip_border': str(bool(getattr(head.bbox_coder, 'clip_border', False))).lower(),
    }
    model = g.model({**metadata, **facts})
    if target_of(target).fuses:
        check_placement(model, target_of(target).unsigned, writer.rounded)
    return model
