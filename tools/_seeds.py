"""Tiny ``.clipq`` files to mutate: stock detectors of a few thousand weights, made in seconds."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmclipq.apis import build_detector, quantize, save_int8
from mmclipq.graph.artifact import load_artifact, save_artifact

from _graphs import with_random_nodes  # isort: skip

_PREFIX = struct.Struct('<8sIQ32s')
_BACKBONE = dict(
    type='RegNet', arch=dict(w0=8, wa=8.0, wm=2.0, group_w=4, depth=4, bot_mul=1.0),
    strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2), base_channels=8,
    stem_channels=8, norm_cfg=dict(type='BN'),
    init_cfg=None,
)  # fmt: skip
_NMS = dict(type='nms', iou_threshold=0.5)
_PREPROCESSOR = dict(
    type='DetDataPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True,
    pad_size_divisor=32,
)  # fmt: skip
PIPELINE = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]


def _channels() -> list[int]:
    """Channels of the backbone's results."""
    model = build_detector(_dense([8, 8]), random=True)
    with torch.no_grad():
        return [x.shape[1] for x in model.backbone(torch.zeros(1, 3, 64, 64))]


def _dense(channels: list[int], **head: Any) -> dict[str, Any]:
    return dict(
        type='FCOS', data_preprocessor=_PREPROCESSOR, backbone=_BACKBONE,
        neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=2),
        bbox_head=dict(
            type='FCOSHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1,
            strides=[8, 16], regress_ranges=((-1, 64), (64, 1e8)), norm_cfg=None, **head,
        ),
        test_cfg=dict(nms_pre=50, min_bbox_size=0, score_thr=0.05, nms=_NMS, max_per_img=10),
    )  # fmt: skip


def one_stage(classes: int) -> dict[str, Any]:
    """Model section of the smallest detector; it is fit for training."""
    model = _dense(_channels())
    model['bbox_head']['num_classes'] = classes
    model['test_cfg']['score_thr'] = 0.0
    return model


def _two_stage(channels: list[int], mask: bool) -> dict[str, Any]:
    align = dict(type='RoIAlign', output_size=3, sampling_ratio=0)
    extractor = dict(
        type='SingleRoIExtractor', roi_layer=align, out_channels=8, featmap_strides=[8, 16]
    )
    roi_head = dict(
        type='StandardRoIHead', bbox_roi_extractor=extractor,
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, roi_feat_size=3,
            num_classes=3, reg_class_agnostic=True,
        ),
    )  # fmt: skip
    if mask:
        roi_head |= dict(
            mask_roi_extractor=extractor,
            mask_head=dict(
                type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3
            ),
        )
    proposals = dict(nms_pre=50, max_per_img=10, nms=_NMS, min_bbox_size=0)
    return dict(
        type='MaskRCNN' if mask else 'FasterRCNN', data_preprocessor=_PREPROCESSOR,
        backbone=_BACKBONE,
        neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=2),
        rpn_head=dict(
            type='RPNHead', in_channels=8, feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16]
            ),
        ),
        roi_head=roi_head, train_cfg=None,
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.0, nms=_NMS, max_per_img=5, mask_thr_binary=0.5),
        ),
    )  # fmt: skip


def _anchors(channels: list[int]) -> dict[str, Any]:
    model = _dense(channels)
    model['bbox_head'] = dict(
        type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0, 2.0], strides=[8, 16]
        ),
    )  # fmt: skip
    model['type'] = 'RetinaNet'
    return model


def save_version_2(path: Path, source: Path) -> None:
    """Write the file ``source`` as format version 2 had it, which its readers must still take."""
    body = source.read_bytes()[_PREFIX.size :]
    (length,) = struct.unpack('<Q', body[:8])
    header = json.loads(body[8 : 8 + length])
    del header['format'], header['config']['parts']
    text = json.dumps(header).encode()
    write_signed(path, struct.pack('<Q', len(text)) + text + body[8 + length :], 2)


def write_signed(path: Path, body: bytes, version: int) -> None:
    """Write a file with the right checksum, whatever ``body`` is."""
    prefix = _PREFIX.pack(b'CLIPQ\r\n\0', version, len(body), hashlib.sha256(body).digest())
    path.write_bytes(prefix + body)


def make_seeds(folder: Path) -> list[Path]:
    """One-stage, two-stage and mask detectors, with every kind of node, in every version."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    channels = _channels()
    models = {
        'fcos': _dense(channels),
        'retina': _anchors(channels),
        'two_stage': _two_stage(channels, mask=False),
        'mask': _two_stage(channels, mask=True),
    }
    files = []
    for number, (name, section) in enumerate(models.items()):
        cfg = Config(dict(model=section, test_dataloader=dict(dataset=dict(pipeline=PIPELINE))))
        model = build_detector(cfg.model, random=True).eval()
        quantized = quantize(model, [torch.rand(2, 3, 64, 64)])
        path = folder / f'{name}.clipq'
        save_int8(path, model, quantized, cfg, {'classes': ('a', 'b', 'c')})
        files.append(path)
        artifact = load_artifact(path)
        files.append(folder / f'{name}_dense.clipq')
        save_artifact(files[-1], artifact, dense=True)
        for more in range(2):
            first = with_random_nodes(artifact.graphs[0], 10 * number + more)
            artifact.graphs = (first, *artifact.graphs[1:])
            extended = folder / f'{name}_{more}.clipq'
            save_artifact(extended, artifact)
            files.append(extended)
            artifact = load_artifact(path)
        if not quantized.modules:
            files.append(folder / f'{name}_version2.clipq')
            save_version_2(files[-1], path)
    return files
