"""Boxes of the usual dense heads in compiled steps, from the maps to what suppression leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..ops.cpu import heads as op
from .options import Options, coder_numbers, find_kind, read_options
from .places import ChosenPriors, Sizes
from .plans import Form, Plan, planned, roles
from .settings import Settings

_FORMS = 16
"""Forms of maps whose plans are kept."""

_ITEM = 4
"""Bytes of a float32."""


class Decoder:
    """Makes a head's boxes from its maps, the same as the head's own code to the last bit.

    What of its scores and boxes goes through a sigmoid, softmax or exponential is computed by
    PyTorch, or by the C library where PyTorch would call it, for the end of a row.

    Args:
        kind: From :func:`mmclipq.pipeline.options.find_kind`.
    """

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._made: tuple[Settings, Options | None, dict[Form, Plan | None]] | None = None

    def __reduce__(self) -> Any:  # plans hold addresses
        return Decoder, (self._kind,)

    def __call__(
        self,
        head: Any,
        maps: Sequence[Sequence[Tensor]],
        metas: Sequence[Mapping[str, Any]],
        settings: Settings,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData] | None:
        """Results as ``head.predict_by_feat`` gives them; None where its own code must make them.

        Args:
            head: The head.
            maps: Kinds of outputs, levels of each, float32 ``(N, C, H, W)`` on the CPU.
            metas: Of each image.
            settings: The test config; the same object as long as nothing in it changes.
            rescale: Whether boxes shall be in pixels of the original image.
            with_nms: Whether to suppress.
        """
        if not with_nms or len(maps[0][0]) != len(metas):
            return None
        plan = self._plan(head, maps, settings)
        priors = None if plan is None else _priors(head, self._kind, plan.sizes)
        if plan is None or priors is None or tuple(x.shape for x in priors) != plan.priors:
            return None
        results = []
        for number, meta in enumerate(metas):
            result = self._one(plan, maps, priors, number, meta, rescale)
            if result is None:
                return None
            results.append(result)
        return results

    def _plan(self, head: Any, maps: Sequence[Sequence[Tensor]], settings: Settings) -> Plan | None:
        made = self._made
        if made is None or made[0] is not settings:
            made = self._made = settings, read_options(settings, self._kind), {}
        _, options, plans = made
        if options is None:
            return None
        shapes = tuple([tuple([(x.shape, x.stride()) for x in kind]) for kind in maps])
        form = Form(shapes, torch.get_num_threads(), coder_numbers(head, self._kind))
        if form not in plans:
            while len(plans) >= _FORMS:
                plans.pop(next(iter(plans)), None)
            plans[form] = planned(head, self._kind, options, form)
        return plans.get(form)

    def _one(
        self, plan: Plan, maps: Sequence[Sequence[Tensor]], priors: Sequence[Tensor],
        number: int, meta: Mapping[str, Any], rescale: bool,
    ) -> InstanceData | None:  # fmt: skip
        """Boxes of one image of the batch."""
        scale, scaling = (1.0, 1.0), op.KEPT
        if rescale:
            scale, scaling = tuple(meta['scale_factor']), op.DIVIDED
            if len(scale) != 2:
                return None
            if self._kind != op.YOLOX:
                scale, scaling = (1 / scale[0], 1 / scale[1]), op.MULTIPLIED
        addresses: list[int] = []
        for level, made in enumerate(priors):
            for kind in roles(self._kind, maps):
                x = kind[level] if kind else None
                first = 0 if x is None else x.data_ptr() + _ITEM * number * x.stride(0)
                addresses.append(first)
            if self._kind == op.YOLOV3:  # objectness follows the four numbers of a box
                addresses[-1] += 4 * _ITEM * maps[0][level].stride(1)
            addresses.append(made.data_ptr())
        found = op.find_boxes(
            plan.heads[number if len(plan.heads) > 1 else 0],
            plan.addresses(*addresses),
            meta['img_shape'][:2],
            scale,
            scaling,
        )
        if found is None or (self._kind == op.PROPOSALS and not len(found[1])):
            return None  # without proposals their labels are of another type
        boxes, scores, labels = found
        return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def _priors(head: Any, kind: int, sizes: Sizes) -> list[Tensor] | None:
    """Priors of all places, float32, contiguous; None for others."""
    if not isinstance(generator := head.prior_generator, ChosenPriors):
        return None
    options: dict[str, Any] = {} if kind == op.YOLOV3 else {'dtype': torch.float32}
    if kind == op.YOLOX:
        options['with_stride'] = True
    made = generator.whole(sizes, **options, device=torch.device('cpu'))
    plain = all(type(x) is Tensor and x.dtype == torch.float32 and x.is_contiguous() for x in made)
    return made if plain else None


def find_decoder(head: nn.Module) -> Decoder | None:
    """A :class:`Decoder` for a stock head with a stock coder of boxes; None for another."""
    kind = find_kind(head)
    return None if kind is None else Decoder(kind)
