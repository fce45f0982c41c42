"""ClipLinear equals linear(clamp(x), clamp(w)) of plain autograd, outputs and all gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmclipq.layers import ClipLinear

INPUT, WEIGHT = 2.0, 0.25
SHAPES = {
    'one row': (1, 3),
    'rows': (5, 12),
    'vector': (7,),
    'batches': (2, 3, 7),
    'one feature': (4, 1),
    '255 features': (3, 255),
    'empty': (0, 4),
    'empty batches': (0, 3, 4),
}
ROUNDED = pytest.mark.parametrize('rounded', [False, True], ids=['clip', 'round'])


@pytest.fixture
def pair(hurting, whole_numbers):
    """``pair(shape, **options)``: a ClipLinear, its stock twin, two equal inputs."""

    def make(shape, outputs=5, bias=True, **options):
        stock = nn.Linear(shape[-1], outputs, bias)
        # Fewer fractional bits, so that sums over 255 features are exact in float32 as well.
        weight = (hurting(stock.weight.shape, WEIGHT, seed=3) * 128).round() / 128
        stock.weight.data.copy_(weight)
        if bias:
            stock.bias.data.copy_(whole_numbers(stock.bias.shape))
        options = {'input_range': INPUT, 'weight_range': WEIGHT, **options}
        clipped = ClipLinear(shape[-1], outputs, bias, **options)
        clipped.load_state_dict(stock.state_dict())
        x = hurting(shape, INPUT)
        return clipped, stock, x.clone().requires_grad_(), x.clone().requires_grad_()

    return make


def assert_same(clipped, stock, x, other, output, wanted, grad):
    assert output.dtype == wanted.dtype
    assert torch.equal(output, wanted)
    output.backward(grad)
    wanted.backward(grad)
    assert torch.equal(x.grad, other.grad)
    assert torch.equal(clipped.weight.grad, stock.weight.grad)
    if stock.bias is not None:
        assert torch.equal(clipped.bias.grad, stock.bias.grad)


@ROUNDED
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('name', SHAPES)
def test_equals_plain_autograd(name, bias, rounded, pair, plain_limit, whole_numbers):
    clipped, stock, x, other = pair(SHAPES[name], bias=bias, round=rounded)
    weight = plain_limit(stock.weight, WEIGHT, rounded)
    wanted = F.linear(plain_limit(other, INPUT, rounded), weight, stock.bias)
    grad = whole_numbers(wanted.shape)
    assert_same(clipped, stock, x, other, clipped(x), wanted, grad)


@pytest.mark.parametrize('outputs', [1, 255])
def test_output_counts(outputs, pair, plain_limit, whole_numbers):
    clipped, stock, x, other = pair((6, 9), outputs)
    wanted = F.linear(plain_limit(other, INPUT), plain_limit(stock.weight, WEIGHT), stock.bias)
    grad = whole_numbers(wanted.shape)
    assert_same(clipped, stock, x, other, clipped(x), wanted, grad)


def test_open_ranges_do_not_clip(pair):
    clipped, stock, x, other = pair((5, 12), input_range='auto', weight_range='auto')
    output, wanted = clipped(x), stock(other)
    assert torch.equal(output, wanted)
    output.sum().backward()
    assert (x.grad[x.abs() > INPUT] != 0).any()


@ROUNDED
@pytest.mark.parametrize('name', ['rows', 'vector', 'batches', 'empty'])
def test_autocast_equals_plain_autograd_under_the_same_cast(
    name, rounded, pair, plain_limit, whole_numbers
):
    clipped, stock, x, other = pair(SHAPES[name], round=rounded)
    with torch.autocast('cpu', torch.bfloat16):
        output = clipped(x)
        assert stock(other).dtype == output.dtype == torch.bfloat16
    inputs = plain_limit(other.bfloat16(), INPUT, rounded)
    weight = plain_limit(stock.weight.bfloat16(), WEIGHT, rounded)
    wanted = F.linear(inputs, weight, stock.bias.bfloat16())
    grad = whole_numbers(wanted.shape).bfloat16()
    assert_same(clipped, stock, x, other, output, wanted, grad)
    assert clipped.weight.grad.dtype == torch.float32
    assert torch.isfinite(clipped.weight.grad).all()


@ROUNDED
def test_only_the_very_input_and_weight_are_kept(rounded, pair, saved_for_backward):
    clipped, _, x, _ = pair((5, 12), round=rounded)
    kept, _ = saved_for_backward(lambda: clipped(x))
    assert sorted(kept) == sorted([x.data_ptr(), clipped.weight.data_ptr()])


@pytest.mark.parametrize('frozen', ['x', 'weight', 'bias'])
def test_frozen_tensors_get_no_gradient(frozen, pair):
    clipped, _, x, _ = pair((5, 12))
    tensors = {'x': x, 'weight': clipped.weight, 'bias': clipped.bias}
    tensors[frozen].requires_grad_(False)
    clipped(x).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]


@pytest.mark.parametrize('name', ['rows', 'batches', 'vector'])
def test_activation_in_place_after_it(name, pair, whole_numbers):
    clipped, stock, x, other = pair(SHAPES[name], input_range='auto', weight_range='auto')
    output, wanted = F.relu(clipped(x), inplace=True), F.relu(stock(other), inplace=True)
    assert_same(clipped, stock, x, other, output, wanted, whole_numbers(wanted.shape))


def test_shared_layer_under_gradient_checkpointing(pair):
    clipped, stock, x, other = pair(SHAPES['batches'], 7, input_range='auto', weight_range='auto')

    def twice(layer):
        return lambda x: F.relu(layer(F.relu(layer(x), inplace=True)), inplace=True)

    output = checkpoint(twice(clipped), x, use_reentrant=False)
    wanted = checkpoint(twice(stock), other, use_reentrant=False)
    assert torch.equal(output, wanted)
    output.sum().backward()
    wanted.sum().backward()
    for ours, theirs in ((x, other), (clipped.weight, stock.weight), (clipped.bias, stock.bias)):
        assert torch.equal(ours.grad, theirs.grad)
