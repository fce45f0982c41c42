"""Box head whose fully connected layers are factored by SVD (section 4.2 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmengine.logging import print_log
from torch import Tensor, nn

from ....errors import ClipQError
from ....registry import MODELS

_PROVISIONAL_RANK = 256


def rank_for_energy(singular_values: Tensor, energy: float) -> int:
    """Smallest rank whose squared singular values hold ``energy`` of their sum.

    >>> rank_for_energy(torch.tensor([3.0, 4.0, 0.0]), 0.6)
    1
    """
    values = singular_values.double().square().sort(descending=True).values
    reached = values.cumsum(0) >= energy * values.sum()
    return int(reached.to(torch.uint8).argmax()) + 1


class SVDLinear(nn.Module):
    """``W (n x m) ~ U_r diag(s_r) V_r^T`` as two linear layers, m to r without bias and r to n.

    A dense layer's weights load into it: the factors are computed on loading, each with the square
    root of the singular values, so that both have ranges of one size. Its own checkpoints load as
    they are, whatever their rank. Loading another rank replaces the data of the same Parameters.

    Args:
        in_features: m.
        out_features: n.
        rank: r, or None to choose it by ``energy`` when a dense layer is loaded.
        energy: Share of the squared singular values to keep, above 0 and up to 1.
        name: What the layer is called in errors and log lines.

    Raises:
        ClipQError: if the rank is above that of an n x m matrix or below one, or the energy is
            not a share.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int | None,
        energy: float | None = None,
        name: str = 'SVDLinear',
    ) -> None:
        super().__init__()
        largest = min(in_features, out_features)
        if rank is not None and not 1 <= rank <= largest:
            raise ClipQError(
                f'{name}: found rank {rank}, wanted one from 1 to {largest}, the rank of its '
                f'{out_features} x {in_features} matrix'
            )
        if (rank is None) == (energy is None):
            raise ClipQError(f'{name}: found rank={rank} and energy={energy}, wanted one of them')
        if energy is not None and not 0 < energy <= 1:
            raise ClipQError(f'{name}: found svd_energy={energy}, wanted one above 0, at most 1')
        self.in_features, self.out_features = in_features, out_features
        self.rank, self.energy, self.name = rank, energy, name
        width = rank if rank is not None else min(_PROVISIONAL_RANK, largest)
        self.first = nn.Linear(in_features, width, bias=False)
        self.second = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor ``(*, m)`` to ``(*, n)``."""
        return self.second(self.first(x))

    def factor(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors ``(r, m)`` and ``(n, r)`` of a dense weight ``(n, m)``, with a log line."""
        u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        rank = self.rank
        if rank is None:
            assert self.energy is not None  # the constructor wants one of the two
            rank = rank_for_energy(s, self.energy)
        root = s[:rank].sqrt()
        kept = float(s[:rank].double().square().sum() / s.double().square().sum().clamp(min=1e-300))
        before, after = weight.numel(), rank * sum(weight.shape)
        print_log(
            f'mmclipq: {self.name}: rank {rank} keeps {kept:.2%} of the energy, '
            f'{before:,} weights before and {after:,} after',
            logger='current',
        )
        return root[:, None] * vt[:rank], u[:, :rank] * root

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        dense = f'{prefix}weight'
        if dense in state_dict and state_dict[dense].shape == (self.out_features, self.in_features):
            first, second = self.factor(state_dict.pop(dense))
            state_dict[f'{prefix}first.weight'] = first
            state_dict[f'{prefix}second.weight'] = second
            state_dict[f'{prefix}second.bias'] = state_dict.pop(f'{prefix}bias')
        loaded = state_dict.get(f'{prefix}first.weight')
        if loaded is not None and self.rank is None and loaded.dim() == 2:
            self._set_rank(loaded.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _set_rank(self, rank: int) -> None:
        """Change the shapes of the same Parameter objects, which an optimizer may hold already."""
        if rank != self.first.out_features:
            self.first.weight.data = self.first.weight.data.new_empty(rank, self.in_features)
            self.second.weight.data = self.second.weight.data.new_empty(self.out_features, rank)
            self.first.out_features = self.second.in_features = rank


@MODELS.register_module()
class SVDBBoxHead(ConvFCBBoxHead):
    """Drop-in for ``Shared2FCBBoxHead`` and for ``ConvFCBBoxHead`` with factored FC layers.

    Shared and branch FCs are :class:`SVDLinear`; the class and box layers stay dense.

    Args:
        svd_rank: One rank for all FCs (256 in the paper), or ranks by layer name such as
            ``{'shared_fcs.0': 256, 'shared_fcs.1': 128}``, or a list for the shared FCs.
        svd_energy: Choose the ranks by this share of kept energy instead.
        **kwargs: Arguments of ``ConvFCBBoxHead``; without any count of layers there are two shared
            FCs.

    Raises:
        ClipQError: if a rank is above its matrix's, or given for a layer that does not exist.
    """

    def __init__(
        self,
        *args: Any,
        svd_rank: int | Sequence[int] | Mapping[str, int] = 256,
        svd_energy: float | None = None,
        **kwargs: Any,
    ) -> None:
        if not any(key.startswith('num_') and key.endswith(('_convs', '_fcs')) for key in kwargs):
            kwargs['num_shared_fcs'] = 2
        super().__init__(*args, **kwargs)
        branches = {name: getattr(self, name) for name in ('shared_fcs', 'cls_fcs', 'reg_fcs')}
        layers = {f'{name}.{i}': fc for name, fcs in branches.items() for i, fc in enumerate(fcs)}
        ranks = self._ranks(list(layers), svd_rank)
        for name, dense in layers.items():
            branch, _, index = name.partition('.')
            rank = None if svd_energy is not None else ranks[name]
            branches[branch][int(index)] = SVDLinear(
                dense.in_features, dense.out_features, rank, svd_energy, name
            )

    @staticmethod
    def _ranks(names: list[str], ranks: int | Sequence[int] | Mapping[str, int]) -> dict[str, int]:
        if isinstance(ranks, int):
            return dict.fromkeys(names, ranks)
        if not isinstance(ranks, Mapping):
            shared = [name for name in names if name.startswith('shared_fcs.')]
            if len(ranks) != len(shared):
                raise ClipQError(
                    f'svd_rank: found {len(ranks)} ranks, wanted one for each of the {len(shared)} '
                    'shared FCs'
                )
            ranks = dict(zip(shared, ranks, strict=True))
        if set(ranks) != set(names):
            raise ClipQError(
                f'svd_rank: found ranks for {sorted(ranks)}, wanted them for {sorted(names)}'
            )
        return dict(ranks)
