"""Conformance of what a region-of-interest head needs: code inputs, flattening, RoIAlign."""

import numpy as np
import pytest
import torch
from conformance_base import S8, U8, ConformanceBase, kind_of
from oracle import expected_codes, expected_roi_align, random_codes, step_of

from mmclipq.backends import build_backend
from mmclipq.graph import ir

ROIS = [
    [0, 0, 0, 40, 24],
    [1, 3.3, 7.9, 21.4, 13.0],
    [1, -20, -9, 30, 90],  # beyond the image on three sides
    [0, 10, 10, 10, 10],  # no area
    [0, 30, 12, 20, 10],  # turned inside out
    [0, 12.5, 3.5, 12.75, 3.625],  # less than a pixel
    [1, 0, 0, 64, 48],
    [0, 63, 47, 64, 48],  # the last pixel
    [1, 500, 500, 600, 600],  # far outside
    [0, 0, 20, 64, 22],  # many samples in one row
]
MANY = np.random.default_rng(0).uniform(-8, 72, (40, 5)).astype(np.float32)
MANY[:, 0] = np.arange(40) % 2
MANY[:, 3:] = MANY[:, 1:3] + np.abs(MANY[:, 3:])


class RegionConformance(ConformanceBase):
    def run_codes(self, nodes, codes, rois):
        """Code tensors go in as they are; returns all codes of the graph, and its output."""
        inputs = [ir.Input(name, kind_of(kind)) for name, (kind, _) in codes.items()]
        inputs.append(ir.Input('rois', ir.FLOAT))
        graph = ir.Int8Graph((*inputs, *nodes), ir.Ref(nodes[-1].name), {})
        backend = build_backend(self.backend, graph, None, self.device)
        dtypes = {True: torch.int8, False: torch.uint8}
        tensors = [torch.from_numpy(x).to(dtypes[kind[0]]) for kind, x in codes.values()]
        tensors.append(torch.from_numpy(np.asarray(rois, np.float32).reshape(-1, 5)))
        return backend.codes(*tensors), backend.run(*tensors).cpu()

    @pytest.mark.parametrize('kind', [S8, U8, (True, 5)])
    def test_codes_in_and_out(self, kind):
        x = random_codes((2, 3, 4, 5), kind[0], 1)
        node = ir.Flatten('y', kind_of(kind), 'x')
        found, result = self.run_codes([node], {'x': (kind, x)}, [])
        self.check_codes(found['x'], x, kind_of(kind))
        self.check_codes(found['y'], x.reshape(2, 60), kind_of(kind))
        self.check_codes(result, x.reshape(2, 60), kind_of(kind))

    def test_flatten_nothing(self):
        x = np.zeros((0, 3, 2, 2), np.int64)
        node = ir.Flatten('y', kind_of(S8), 'x')
        _, result = self.run_codes([node], {'x': (S8, x)}, [])
        assert result.shape == (0, 12)

    def test_flatten_order_of_a_linear_layer(self):
        """Weights of a linear layer follow channels, then rows, then columns."""
        x = random_codes((3, 5, 2, 3), True, 4)
        w = random_codes((4, 30), True, 5)
        m, b = np.full(4, 2.0**-12, np.float32), np.zeros(4, np.float32)
        nodes = [
            ir.Flatten('f', kind_of(S8), 'x'),
            ir.Linear('y', ir.FLOAT, 'f', 'w', 'e', 'm', 'b'),
        ]
        acc = np.einsum('nc,kc->nk', x.reshape(3, 30), w)
        _, result = self.execute(nodes, self.constants(w, m, b), {'x': (kind_of(S8), x)})
        assert torch.equal(result, torch.from_numpy(acc.astype(np.float32) * m))

    @pytest.mark.parametrize('rois', [ROIS, MANY, []], ids=['odd', 'many', 'none'])
    @pytest.mark.parametrize('kinds', [(S8, S8), (U8, U8), ((True, 3), (True, 1))])
    @pytest.mark.parametrize(
        ('output_size', 'sampling_ratio', 'aligned'),
        [((7, 7), 0, True), ((2, 5), 2, True), ((3, 3), 0, False), ((1, 1), 3, False)],
    )
    def test_roi_align(self, rois, kinds, output_size, sampling_ratio, aligned):
        kind, out = kinds
        x = random_codes((2, 17, 12, 16), kind[0], 7)
        rois = np.asarray(rois, np.float32).reshape(-1, 5)
        node = ir.RoIAlign(
            'y', kind_of(out), ('x',), 'rois', output_size, (0.25,), sampling_ratio, aligned
        )
        values = x.astype(np.float32) * step_of(kind_of(kind))
        average = expected_roi_align(values, rois, 0.25, output_size, sampling_ratio, aligned)
        found, _ = self.run_codes([node], {'x': (kind, x)}, rois)
        self.check_codes(found['y'], expected_codes(average, kind_of(out)), kind_of(out))

    def test_every_region_reads_the_level_of_its_size(self):
        """Levels are constant, so that the codes tell which one was read."""
        sides = np.float32([1, 55, 111.9, 112, 112.1, 223, 224, 225, 447, 449, 5000, 0])
        rois = [[0, 0, 0, side, side] for side in sides] + [[0, 0, 0, 4, 5000]]
        levels = {f'l{i}': (S8, np.full((1, 2, 6, 6), 10 * i + 10)) for i in range(4)}
        scales = (1e-3, 1e-3, 1e-3, 1e-3)  # every sample lies inside
        node = ir.RoIAlign('y', kind_of(S8), tuple(levels), 'rois', (2, 2), scales, 2)
        found, _ = self.run_codes([node], levels, rois)
        wanted = [10, 10, 10, 20, 20, 20, 30, 30, 30, 40, 40, 10, 20]
        assert found['y'][:, 0, 0, 0].tolist() == wanted

    def test_another_dtype_is_refused(self):
        graph = ir.Int8Graph((ir.Input('x', kind_of(S8)),), ir.Ref('x'), {})
        backend = build_backend(self.backend, graph, None, self.device)
        for dtype in (torch.uint8, torch.float32):
            with pytest.raises(ir.GraphError, match=r'x: found an input of torch\.\w+, wanted'):
                backend.run(torch.zeros(1, 1, 1, 1, dtype=dtype))
