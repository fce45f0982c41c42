"""PyTorch's multi-head attention with its projections as layers of their own, and back."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')
"""Names of the layers that make queries, keys and values, in the order of the packed weight."""


class Projection(nn.Linear):
    """The linear layer before the heads of queries, keys or values.

    It has no parameters of its own: its weight and bias are rows of the attention's packed ones,
    so that checkpoints and optimizers know nothing of it.

    Args:
        owner: The attention.
        index: Which of :data:`PROJECTIONS`.
    """

    def __init__(self, owner: nn.MultiheadAttention, index: int) -> None:
        nn.Module.__init__(self)
        self.in_features = (owner.embed_dim, owner.kdim, owner.vdim)[index]
        self.out_features, self.index = owner.embed_dim, index
        self._owner = (owner,)  # in a tuple: a module inside of its own part would never end

    def _rows(self, packed: Tensor) -> Tensor:
        return packed[self.index * self.out_features : (self.index + 1) * self.out_features]

    # Properties where nn.Linear has parameters, which MultiheadAttention keeps packed.
    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        """Float ``(out_features, in_features)``; None where the attention has lost it."""
        (owner,) = self._owner
        if owner._qkv_same_embed_dim:
            return None if owner.in_proj_weight is None else self._rows(owner.in_proj_weight)
        return getattr(owner, f'{PROJECTIONS[self.index]}_weight')

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """Float ``(out_features,)``, or None."""
        (owner,) = self._owner
        return None if owner.in_proj_bias is None else self._rows(owner.in_proj_bias)


class SplitAttention(nn.MultiheadAttention):
    """What :class:`torch.nn.MultiheadAttention` computes, step by step.

    PyTorch's own reads its weights without calling a layer. Here the projections are called, so
    that they can be clipped, observed, and replaced by integer products; parameters and their names
    stay the same. Made by :func:`split_attention`.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of :class:`torch.nn.MultiheadAttention`.

        Raises:
            ValueError: for ``is_causal``, a mere hint, without the mask that it hints at.
        """
        if is_causal and attn_mask is None:
            raise ValueError('found is_causal without attn_mask, wanted the mask')
        alone = query.dim() == 2
        axis = 0 if self.batch_first and not alone else 1
        if alone:  # a batch of one
            query, key, value = (x.unsqueeze(axis) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        images = query.shape[axis]
        q = self._heads(self.q_proj(query) * math.sqrt(1 / self.head_dim), images, axis)
        k = self._heads(self.k_proj(key), images, axis)
        v = self._heads(self.v_proj(value), images, axis)
        mask = self._mask(attn_mask, key_padding_mask, images, q.dtype)
        if mask is None:
            scores = torch.bmm(q, k.transpose(1, 2))
        else:
            scores = torch.baddbmm(mask, q, k.transpose(1, 2))
        weights = torch.softmax(scores, dim=-1)
        if self.training and self.dropout > 0:
            weights = F.dropout(weights, self.dropout)
        # As rows, which is how PyTorch adds up the gradient of the bias.
        out = self.out_proj(self._rows(torch.bmm(weights, v), images, axis))
        shape = (images, -1) if axis == 0 else (-1, images)
        out = out.reshape(*shape, self.embed_dim)
        if alone:
            out = out.squeeze(axis)
        return out, self._shown(weights, images, average_attn_weights, alone, need_weights)

    def _heads(self, x: Tensor, images: int, axis: int) -> Tensor:
        """``(N, L, E)`` or ``(L, N, E)``, images along ``axis``, to ``(N * heads, L, width)``."""
        if axis == 1:
            return x.reshape(-1, images * self.num_heads, self.head_dim).transpose(0, 1)
        x = x.reshape(images, -1, self.num_heads, self.head_dim).transpose(1, 2)
        return x.reshape(images * self.num_heads, -1, self.head_dim)

    def _rows(self, x: Tensor, images: int, axis: int) -> Tensor:
        """Inverse of :meth:`_heads`, but with queries and images on one axis, in their order."""
        if axis == 1:
            x = x.transpose(0, 1)
        else:
            x = x.reshape(images, self.num_heads, -1, self.head_dim).transpose(1, 2)
        return x.reshape(-1, self.embed_dim)

    def _mask(
        self, scores: Tensor | None, keys: Tensor | None, images: int, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores ``(N * heads, L, S)``, or None.

        Args:
            scores: Mask ``(L, S)`` or ``(N * heads, L, S)``.
            keys: Mask ``(N, S)``. Masks are True where nothing may be read, or are added.
            images: Their number.
            dtype: Of the result.
        """
        added = None
        if scores is not None:
            added = _additive(scores, dtype)
            added = added.unsqueeze(0) if scores.dim() == 2 else added
        if keys is not None:
            rows = _additive(keys, dtype).reshape(images, 1, 1, -1)
            rows = rows.expand(-1, self.num_heads, -1, -1)
            rows = rows.reshape(images * self.num_heads, 1, -1)
            added = rows if added is None else added + rows
        return added

    def _shown(
        self, weights: Tensor, images: int, average: bool, alone: bool, wanted: bool
    ) -> Tensor | None:
        """The attention weights as the caller wants them."""
        if not wanted:
            return None
        _, rows, columns = weights.shape
        weights = weights.reshape(images, self.num_heads, rows, columns)
        if average:
            weights = weights.mean(dim=1)
        return weights.squeeze(0) if alone else weights


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float('-inf'))


def whole_reason(module: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot be split; None if it can."""
    if type(module) not in (nn.MultiheadAttention, SplitAttention):
        return f'{type(module).__name__} is no plain multi-head attention'
    if module.bias_k is not None or module.add_zero_attn:
        return f'{type(module).__name__} adds keys of its own'
    return None


def split_attention(model: nn.Module) -> list[SplitAttention]:
    """Turn every attention inside into a :class:`SplitAttention`, in place: same parameters.

    Returns:
        Those that were another class before, which :func:`join_attention` takes.
    """
    changed: list[SplitAttention] = []
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and whole_reason(module) is None:
            module.__class__ = SplitAttention
            for index, name in enumerate(PROJECTIONS):
                module.add_module(name, Projection(module, index).train(module.training))
            changed.append(cast(SplitAttention, module))
    return changed


def join_attention(modules: Iterable[nn.Module]) -> None:
    """Undo :func:`split_attention` on those of ``modules`` that are split."""
    for module in list(modules):
        if type(module) is SplitAttention:
            for name in PROJECTIONS:
                delattr(module, name)
            cast(nn.Module, module).__class__ = nn.MultiheadAttention


def packed_parameters(model: nn.Module, computed: Container[str]) -> Iterator[tuple[str, str]]:
    """Path and parameter of attentions whose projections are all ``computed`` elsewhere.

    Args:
        model: Its attentions may be split or not.
        computed: Paths of layers.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            prefix = f'{path}.' if path else ''
            if all(f'{prefix}{name}' in computed for name in PROJECTIONS):
                yield from ((path, name) for name in module._parameters)
