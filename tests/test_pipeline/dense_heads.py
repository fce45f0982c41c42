"""Dense heads of stock configs, and maps as trained ones give them."""

import copy

import torch
from mmengine.config import Config

from mmclipq.apis.mmdet_tools import find_config

DENSE = {
    'YOLOv3': 'yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py',
    'YOLOX': 'yolox_tiny_8xb8-300e_coco.py',
    'RetinaNet': 'retinanet_r18_fpn_1x_coco.py',
    'FCOS': 'fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss_r50_fpn_1x_coco.py',
    'GFL': 'gfl_r50_fpn_1x_coco.py',
    'VFNet': 'vfnet_r50_fpn_1x_coco.py',
    'RTMDet': 'rtmdet_tiny_8xb32-300e_coco.py',
    'SSDLite': 'ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'FSAF': 'fsaf_r50_fpn_1x_coco.py',
    'RPN': 'rpn_r50-caffe_fpn_1x_coco.py',
}


def model_config(name: str) -> Config:
    cfg = Config.fromfile(find_config(name)).model
    cfg.backbone.init_cfg = None
    return cfg


def head_of(cfg: Config):
    """The dense head of a detector's config alone, which is all that is needed here."""
    from mmdet.registry import MODELS

    key = 'rpn_head' if cfg.type == 'FasterRCNN' or cfg.type == 'RPN' else 'bbox_head'
    own = dict(cfg[key])
    test_cfg = cfg.test_cfg.rpn if 'rpn' in cfg.test_cfg else cfg.test_cfg
    head = MODELS.build({**own, 'test_cfg': test_cfg, 'train_cfg': None}).eval()
    if not hasattr(head, 'loss_cls'):  # SSD's of mmdet 3.3 asks for it without having it
        head.loss_cls = None
    return head


STRIDES = {'YOLOv3': (32, 16, 8), 'SSDLite': (16, 32, 64, 107, 160, 320), 'RPN': (4, 8, 16, 32, 64)}
STRIDES |= dict.fromkeys(('YOLOX', 'RTMDet'), (8, 16, 32))
CHANNELS = {'YOLOv3': (96, 96, 96), 'SSDLite': (96, 1280, 512, 256, 256, 128)}
CHANNELS |= dict.fromkeys(('YOLOX', 'RTMDet'), (96, 96, 96))


def outputs_of(name: str, head, size: int, batch: int = 1, seed: int = 0) -> tuple:
    """Maps in the shapes that the head gives, with the logits of a trained one: few are high."""
    strides = STRIDES.get(name, (8, 16, 32, 64, 128))
    channels = CHANNELS.get(name, (256,) * len(strides))
    features = [
        torch.zeros(batch, c, max(1, -(-size // s)), max(1, -(-size // s)))
        for c, s in zip(channels, strides, strict=True)
    ]
    with torch.no_grad():
        shapes = head(tuple(features))
    generator = torch.Generator().manual_seed(seed)

    def logits(x):
        made = torch.randn(x.shape, generator=generator)
        return made.contiguous(memory_format=torch.channels_last)

    kinds = [[logits(x) for x in kind] for kind in shapes if kind is not None]
    lower = {'YOLOv3': 3.0, 'SSDLite': 0.0}.get(name, 4.0)
    kinds[0] = [x * 2 - lower for x in kinds[0]]
    if name == 'YOLOX':
        kinds[2] = [x * 2 - 3 for x in kinds[2]]
    if name in ('FCOS', 'VFNet', 'RTMDet'):  # distances, which forward makes positive
        kinds[1] = [x.exp() * 8 for x in kinds[1]]
    return tuple(kinds)


def metas(size: int, batch: int = 1) -> list[dict]:
    meta = dict(img_shape=(size, size - 6), ori_shape=(size * 2, size * 2), scale_factor=(0.5, 0.5))
    return [{**meta, 'img_id': number} for number in range(batch)]


def predicted(head, kinds, size, **options):
    """A copy of the maps goes in: some heads decode in place."""
    batch = len(kinds[0][0])
    with torch.no_grad():
        given = copy.deepcopy(kinds)
        return head.predict_by_feat(
            *given, batch_img_metas=metas(size, batch), rescale=True, **options
        )


def same(found, wanted) -> bool:
    return all(
        len(f) == len(w)
        and set(f.keys()) == set(w.keys())
        and all(torch.equal(f[key], w[key]) for key in set(w.keys()))
        for f, w in zip(found, wanted, strict=True)
    )
