"""Turns of the benchmark, its tables, what a start takes, and the count of operations."""

import sys

import pytest
import torch

from mmclipq.benchmark import timing as benchmark
from mmclipq.benchmark.parts import Setting
from mmclipq.benchmark.peers import PEERS, size_of
from mmclipq.benchmark.timing import Start, Timing, operations, table, time_in_turn
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.ops.cpu.library import why_unavailable


def test_runs_take_turns():
    calls = []
    timings = time_in_turn({name: lambda n=name: calls.append(n) for name in 'ab'}, rounds=3)
    assert ''.join(calls) == 'ab' * 5  # two rounds do not count
    assert [t.name for t in timings] == ['a', 'b']
    assert all(0 <= t.least <= t.median <= t.largest for t in timings)


def test_table_has_ratios_to_the_first_row():
    rows = [Timing('torch', 100, 90, 120), Timing('mmclipq', 20, 19, 25)]
    lines = table('dense part', rows, 4, {'torch': 0.1, 'mmclipq': 0.5}).splitlines()
    assert lines[2] == '| torch | 100.0 (90.0 to 120.0) | 40.0 | 1.00 | 10% |'
    assert lines[3] == '| mmclipq | 20.0 (19.0 to 25.0) | 200.0 | 5.00 | 50% |'
    assert table('dense part', rows, 1, {}).splitlines()[3].endswith('| 50.0 | 5.00 |  |')


def test_times_below_10_ms_get_more_decimals():
    row = table('dense part', [Timing('mmclipq cuda', 0.4321, 0.43, 12.34)], 1, {}).splitlines()[2]
    assert row == '| mmclipq cuda | 0.432 (0.430 to 12.3) | 2314.3 | 1.00 |  |'


def test_start_table():
    text = benchmark.start_table([Start('mmclipq', 3 * 2**19, 0.25, 0.5, 2**23)])
    assert text.splitlines()[2] == '| mmclipq | 1.5 | 0.25 | 0.50 | 8 |'


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


def test_absent_runtimes_say_what_is_missing(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert PEERS['openvino int8'].missing == 'not installed: openvino, nncf'
    assert PEERS['onnxruntime'].missing == 'not installed: onnx, onnxruntime'
    here = [name for name, peer in PEERS.items() if not peer.missing]
    assert here == ['torch', 'torch.compile', 'mmclipq']


def test_file_of_openvino_counts_its_weights(tmp_path):
    for name, size in (('a.xml', 10), ('a.bin', 300), ('b.onnx', 7), ('b.bin', 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert size_of(tmp_path / 'a.xml') == 310
    assert size_of(tmp_path / 'b.onnx') == 7


def test_setting_names_itself():
    assert str(Setting(None, torch.zeros(8, 3, 1, 1), 1)) == '1 thread, batch 8'
    assert str(Setting(None, torch.zeros(1, 3, 1, 1), 2)) == '2 threads, batch 1'


def test_start_that_fails_is_told_in_one_sentence():
    code = 'import sys; sys.exit("no such file")'
    with pytest.raises(ClipQError, match=r'found no start \(no such file\)'):
        benchmark.start_in_a_process([sys.executable, '-c', code])


@pytest.mark.skipif(bool(why_unavailable()), reason='no CPU operators')
def test_peak_counts_what_it_does():
    few, many = (benchmark.peak_run(rounds) for rounds in (1000, 3000))
    assert many() == 3 * few() > 0


def test_bars_are_drawn(tmp_path):
    panels = {
        'one': [Timing('torch', 100, 90, 120), Timing('mmclipq', 20, 19, 25)],
        'two': [Timing('torch', 5, 4, 6)],
        'three': [Timing('torch', 5, 4, 6)],
    }
    benchmark.draw(panels, tmp_path / 'bars.png', 'a detector')
    assert (tmp_path / 'bars.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert [path.name for path in tmp_path.iterdir()] == ['bars.png']
