"""Turns of the benchmark, its table, and the count of operations."""

import torch

from mmclipq.evaluation.benchmark import Timing, operations, table, time_in_turn
from mmclipq.evaluation.peers import Peers
from mmclipq.graph import ir


def test_runs_take_turns():
    calls = []
    timings = time_in_turn({name: lambda n=name: calls.append(n) for name in 'ab'}, rounds=3)
    assert ''.join(calls) == 'ab' * 5  # two rounds do not count
    assert [t.name for t in timings] == ['a', 'b']
    assert all(0 <= t.least <= t.median <= t.largest for t in timings)


def test_table_has_ratios_to_the_first_row():
    rows = [Timing('torch', 100, 90, 120), Timing('mmclipq', 20, 19, 25)]
    lines = table(rows, work=10, peak=1000).splitlines()
    assert lines[2] == '| torch | 100.0 (90.0 to 120.0) | 1.00 | 10% |'
    assert lines[3] == '| mmclipq | 20.0 (19.0 to 25.0) | 5.00 | 50% |'
    assert table(rows, 10, None).splitlines()[3].endswith('| 5.00 |  |')


def test_operations_count_every_product():
    constants = {
        'w': torch.zeros(8, 2, 3, 3, dtype=torch.int8),
        'v': torch.zeros(5, 8, dtype=torch.int8),
        **{f'{k}{n}': torch.zeros(n) for k in 'mb' for n in (8, 5)},
        **{f'e{n}': torch.zeros(n, dtype=torch.int32) for n in (8, 5)},
    }
    kind = ir.TensorType(0)
    nodes = (
        ir.Input('image', ir.FLOAT),
        ir.Quantize('x', kind, 'image'),
        ir.Conv('c', kind, 'x', 'w', 'e8', 'm8', 'b8', groups=2),
        ir.Linear('l', kind, 'x', 'v', 'e5', 'm5', 'b5'),
    )
    graph = ir.Int8Graph(nodes, ir.Ref('c'), constants)
    shapes = {'c': (1, 8, 6, 7), 'l': (3, 5)}
    assert operations(graph, shapes) * 1e9 == 2 * (8 * 6 * 7 * 18 + 3 * 5 * 8)


def test_absent_runtimes_say_what_is_missing(model, quantized, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    peers = Peers(model, quantized.graph, model, torch.zeros(1, 3, 64, 64)).all
    assert peers['openvino int8'][0] == 'not installed: openvino, nncf'
    assert peers['onnxruntime'][0] == 'not installed: onnx, onnxruntime'
    assert [name for name, (reason, _) in peers.items() if not reason] == [
        'torch',
        'torch.compile',
        'mmclipq',
    ]
