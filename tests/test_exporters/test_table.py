"""Tables for fixed-point toolchains reproduce the codes in integers alone."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
import torch

from mmclipq.backends import build_backend
from mmclipq.exporters.table import c_header, mantissa_and_shift, multiplier_error, table
from mmclipq.graph import ir


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    constants = {
        'w': torch.randint(-128, 128, (6, 8, 1, 1), generator=generator).to(torch.int8),
        'e': torch.arange(6, dtype=torch.int32) - 3,
        'm': torch.rand(6, generator=generator) * 2.0**-14 + 2.0**-16,
        'b': torch.randn(6, generator=generator) * 0.2,
    }
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('layer.1', kind, 'x', 'w', 'e', 'm', 'b'),
    )
    return ir.Int8Graph(nodes, ir.Ref('layer.1'), constants)


@pytest.mark.parametrize('value', [1.0, 0.3, 1e-4, 12345.678, -0.7, 2.0**-16])
def test_mantissa_has_31_bits(value):
    mantissa, shift = mantissa_and_shift(value)
    assert 2**30 <= abs(mantissa) < 2**31
    assert mantissa * 2.0**-shift == pytest.approx(value, rel=2.0**-31)


@pytest.mark.parametrize('value', [0.0, 1e-12, -(2.0**-31), 2.0**-90])
def test_tiny_values_have_fewer_bits(value):
    mantissa, shift = mantissa_and_shift(value)
    assert 1 <= shift <= 47
    assert abs(mantissa * 2.0**-shift - value) <= 2.0**-48


@pytest.mark.parametrize('activation', ['identity', 'relu', 'relu6', 'leaky_relu'])
@pytest.mark.parametrize(
    'residual', [{}, dict(residual='x'), dict(residual='x', residual_last=True)]
)
@pytest.mark.parametrize('signed', [True, False])
def test_the_table_is_executed_in_integers(graph, activation, residual, signed):
    """With every activation and residual it gives the reference's codes, to one step."""
    conv = dataclasses.replace(
        graph.nodes[-1], type=ir.TensorType(0, signed), activation=activation, slope=0.1, **residual
    )
    # The residual has as many channels as the result.
    constants = {**graph.constants, 'w': torch.cat([graph.constants['w']] * 2)[:8]}
    constants |= {k: torch.cat([graph.constants[k]] * 2)[:8] for k in 'emb'}
    constants['m'][7] = 0
    made = ir.Int8Graph((*graph.nodes[:-1], conv), graph.outputs, constants)
    image = torch.rand(1, 8, 9, 9, generator=torch.Generator().manual_seed(3)) * 2 - 1
    wanted, found = (build_backend(name, made).run(image) for name in ('reference', 'table'))
    apart = (found.int() - wanted.int()).abs()[:, :7]  # the last channel's bias has no unit
    assert found.dtype == wanted.dtype
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.02


def test_codes_come_out_of_integers(graph):
    content = table([graph], {'detector': 'some'})
    (product,) = content['graphs'][0]['products']
    codes = build_backend('reference', graph).codes(torch.rand(1, 8, 9, 9) * 2 - 1)
    x = codes['x'].long().numpy()
    acc = np.einsum('nchw,kc->nkhw', x, graph.constants['w'][:, :, 0, 0].long().numpy())
    found = np.empty_like(acc)
    for channel in range(6):
        sums = (acc[:, channel] + product['bias'][channel]) * product['mantissa'][channel]
        shift = product['shift'][channel]
        found[:, channel] = (sums + (1 << (shift - 1))) >> shift
    apart = np.abs(np.clip(found, -128, 127) - codes['layer.1'].long().numpy())
    # The bias is rounded to units of the sums here, and midpoints go up.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.02
    assert multiplier_error([graph]) <= 2.0**-31
    assert product['weight_exponents'] == [-3, -2, -1, 0, 1, 2]
    assert content['graphs'][0]['tensors']['x'] == {
        'exponent': 0, 'step_exponent': -7, 'dtype': 'int8', 'offset': 0,
    }  # fmt: skip
    assert 'not run on fixed-point hardware' in content['note']


def test_header_is_valid_c(graph, tmp_path):
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        pytest.skip('no C compiler')
    (tmp_path / 'table.h').write_text(c_header(table([graph], {})))
    (tmp_path / 'main.c').write_text(
        '#include "table.h"\n'
        'int main(void) { return clipq_0_0_layer_1_mantissa[5] == 0 || '
        'CLIPQ_0_0_X_STEP_EXPONENT != -7; }\n'
    )
    command = [compiler, '-std=c99', '-Wall', '-o', 'main', 'main.c']
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / 'main')]).returncode == 0
