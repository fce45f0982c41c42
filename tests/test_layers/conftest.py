"""Plain autograd twins of the clipped layers, and inputs that lie on and beyond the limits."""

import pytest
import torch


class _Rounded(torch.autograd.Function):
    """Clamp, then int8 grid; the gradient is the clamp's."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x.abs() <= bound)
        step = bound / 128
        return torch.clamp(torch.round(x / step), -128, 127) * step

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


@pytest.fixture
def plain_limit():
    """``limit(x, bound, rounded)`` with torch.clamp and stock autograd; no bound, no limit."""

    def limit(x, bound, rounded=False):
        if bound is None:
            return x
        return _Rounded.apply(x, bound) if rounded else torch.clamp(x, -bound, bound)

    return limit


@pytest.fixture
def hurting():
    """Random multiples of ``bound / 512``, a third exactly at the limit or one unit beyond it.

    Products and sums of such numbers are exact in float32, whatever the order.
    """

    def make(shape, bound, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(-700, 701, tuple(shape), generator=generator) * (bound / 512)
        ends = torch.tensor([bound, -bound])
        ends = torch.cat([ends, torch.nextafter(ends, ends * 2)])
        flat = x.flatten()
        places = torch.arange(0, flat.numel(), 3)
        flat[places] = ends[torch.arange(len(places)) % len(ends)]
        return flat.view(shape)

    return make


@pytest.fixture
def whole_numbers():
    """Random integers from -3 to 3 as float32, for gradients and biases."""

    def make(shape, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-3, 4, tuple(shape), generator=generator).float()

    return make


@pytest.fixture
def saved_for_backward():
    """``saved_for_backward(function)``: addresses of the tensors autograd keeps, and the result."""

    def record(function):
        addresses = []

        def pack(tensor):
            addresses.append(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = function()
        return addresses, result

    return record
