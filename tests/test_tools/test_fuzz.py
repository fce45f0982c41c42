"""Damaged files end in a working detector or in one sentence; what does not is found."""

import collections
import json
import random
import subprocess
import sys
import types
from pathlib import Path

import fuzz
import pytest
import soak
import torch
from _export_mutants import write_mutant
from _graphs import random_graph
from _mutants import Content, mutant
from _seeds import make_seeds, write_signed
from compare_codes import compare

import mmclipq
from mmclipq.apis.export_file import ExportOptions, export_file
from mmclipq.backends.reference import ReferenceBackend
from mmclipq.errors import ClipQError
from mmclipq.graph import ir
from mmclipq.graph.artifact import load_artifact

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    make_seeds(folder / 'seeds')
    return folder / 'seeds'


def test_seeds_hold_every_kind_of_node_and_every_version(seeds):
    kinds, versions, modules = set(), set(), 0
    for path in seeds.glob('*.clipq'):
        artifact = load_artifact(path)
        kinds |= {type(node).__name__ for graph in artifact.graphs for node in graph.nodes}
        versions.add(Content(path).version)
        modules += len(artifact.config.get('parts', {}).get('modules', ()))
    assert kinds == set(ir.NODE_KINDS)
    assert versions == {2, 3, 4}
    assert modules


@pytest.mark.parametrize(
    'name', ['fcos', 'fcos_0', 'fcos_1', 'fcos_version2', 'retina_version2', 'two_stage_1',
             'two_stage_version2', 'mask', 'mask_0', 'retina_dense', 'mask_dense']
)  # fmt: skip
@pytest.mark.parametrize('backend', ['cpu', 'reference'])
def test_every_seed_works(seeds, name, backend):
    assert fuzz.outcome(seeds / f'{name}.clipq', backend) == 'works'


def test_a_version_2_file_gives_what_its_version_3_gives(seeds):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ('fcos', 'two_stage'):
        found = [
            soak.results(mmclipq.load_int8(seeds / f'{name}{version}.clipq'), images)
            for version in ('', '_version2')
        ]
        assert len(found[0][0])
        assert all(map(torch.equal, *found))


def test_mutants_of_a_fixed_seed(seeds, tmp_path, monkeypatch):
    """Some of the files of a campaign, in this process."""
    for entry in fuzz.LIMITS.split():
        assert '=' in entry
    monkeypatch.setenv('MMCLIPQ_LIMITS', fuzz.LIMITS)
    contents = [Content(path) for path in sorted(seeds.glob('*.clipq'))]
    path, ends = tmp_path / 'mutant.clipq', collections.Counter()
    for number in range(150):
        backend = fuzz.make(contents, number, path)
        end = fuzz.outcome(path, backend)
        assert not end.startswith('!'), f'file {number}: {end}'
        ends[end] += 1
    assert ends['refused'] > ends['works'] > 0


@pytest.mark.parametrize(
    ('divisor', 'said'),
    [(1 << power, 'padded to .* pixels: found pixels of') for power in (15, 23)]
    + [(value, 'found pad_size_divisor .*, wanted') for value in (0, -32, 2.5)],
)
def test_images_are_not_padded_without_bounds(seeds, tmp_path, divisor, said):
    content = Content(seeds / 'fcos.clipq')
    content.header['config']['model']['data_preprocessor']['pad_size_divisor'] = divisor
    path = tmp_path / 'padded.clipq'
    write_signed(path, content.body(random.Random(0)), content.version)
    with pytest.raises(ClipQError, match=f'^{path}: .*{said}'):
        mmclipq.load_int8(path)


@pytest.mark.parametrize('field', ['scales', 'ratios', 'strides'])
def test_fewer_anchors_than_the_maps_say_are_refused(seeds, tmp_path, field):
    content = Content(seeds / 'retina.clipq')
    anchors = content.header['config']['model']['bbox_head']['anchor_generator']
    anchors[field] = anchors[field][1:]
    path = tmp_path / 'fewer.clipq'
    write_signed(path, content.body(random.Random(0)), content.version)
    with pytest.raises(ClipQError, match=f'^{path}: '):
        mmclipq.load_int8(path)


def test_mutants_of_exported_files(seeds, tmp_path, monkeypatch):
    """ONNX alone, since OpenVINO's threads do not go well with copies of this process."""
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('MMCLIPQ_LIMITS', fuzz.LIMITS)
    source = tmp_path / 'a.onnx'
    export_file(seeds / 'retina.clipq', source, ExportOptions(end2end=True))
    assert fuzz.exported_outcome(source) == 'works'
    ends = collections.Counter()
    for number in range(80):
        path = write_mutant(source, random.Random(number), tmp_path)
        end = fuzz.exported_outcome(path)
        assert not end.startswith('!'), f'file {number}: {end}'
        ends[end] += 1
    assert ends['refused'] > ends['works'] > 0


@pytest.mark.parametrize('late', [False, True])
def test_a_bare_error_of_a_runtime_is_a_finding(seeds, tmp_path, monkeypatch, late):
    def fail(*args, **kwargs):
        raise RuntimeError('x')

    name = 'mmclipq.apis.exported_detector.load_exported'
    if late:
        monkeypatch.setattr(name, lambda path: types.SimpleNamespace(predict=fail))
    else:
        monkeypatch.setattr(name, fail)
    end = '!predict' if late else '!load'
    assert fuzz.exported_outcome(Path('a.onnx')) == f'{end} RuntimeError: x'


@pytest.mark.slow
def test_a_campaign_of_exported_files(tmp_path):
    ends = fuzz.campaign(tmp_path, 0, 1000, show=False, exports=True)
    assert set(ends) <= {'works', 'refused', 'runtime'}


def test_mutants_are_made_again_by_their_number(seeds, tmp_path):
    contents = [Content(path) for path in sorted(seeds.glob('*.clipq'))]
    made = set()
    for number in (3, 4, 3):
        fuzz.make(contents, number, tmp_path / 'a.clipq')
        made.add((tmp_path / 'a.clipq').read_bytes())
    assert len(made) == 2


def test_a_file_that_is_not_changed_still_works(seeds, tmp_path):
    content, rng = Content(seeds / 'fcos.clipq'), random.Random(2)
    content.repack()
    write_signed(tmp_path / 'a.clipq', content.body(rng), content.version)
    assert fuzz.outcome(tmp_path / 'a.clipq', 'reference') == 'works'
    assert mutant(content, rng) != mutant(content, rng)


@pytest.mark.parametrize(
    ('error', 'end'),
    [
        (TypeError('x'), '!load TypeError: x'),
        (ClipQError('x'), '!no sentence x'),
        (MemoryError(), '!load MemoryError: '),
    ],
)
def test_what_is_no_sentence_is_a_finding(monkeypatch, error, end):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(mmclipq, 'load_int8', fail, raising=False)
    assert fuzz.outcome(Path('a.clipq'), 'cpu') == end


def test_a_late_error_is_a_finding(seeds, monkeypatch):
    def fail(self, node, x):
        raise ClipQError('y: found nothing')

    monkeypatch.setattr(ReferenceBackend, 'quantize', fail)
    assert fuzz.outcome(seeds / 'fcos.clipq', 'reference') == '!late y: found nothing'


WORKER = """
import json, os, sys, time
first = int(sys.argv[sys.argv.index('--first') + 1])
for number in range(first, 6):
    print(json.dumps([number]), flush=True)
    if number == 2:
        os.abort()
    if number == 4:
        time.sleep(60)
    print(json.dumps([number, 'works', 0.1]), flush=True)
"""


def test_a_worker_that_dies_or_hangs_is_a_finding(tmp_path, monkeypatch, capsys):
    (tmp_path / 'worker.py').write_text(WORKER)
    monkeypatch.setattr(fuzz, '__file__', str(tmp_path / 'worker.py'))
    monkeypatch.setattr(fuzz, 'SECONDS', 2.0)
    ends = fuzz.campaign(tmp_path, 0, 6, show=False)
    assert ends == {'works': 4, '!ended': 1, '!too': 1}
    printed = capsys.readouterr().out
    assert 'file 2: !ended with' in printed
    assert 'file 4: !too slow' in printed


@pytest.mark.slow
def test_a_campaign():
    command = [sys.executable, '-W', 'ignore', str(TOOLS / 'fuzz.py'), '--count', '3000']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize('first', [0, 20, 40])
def test_random_graphs_give_the_same_codes_everywhere(first):
    kinds = set()
    for seed in range(first, first + 20):
        count, wrong, found = compare(seed, 12, ['cpu', 'int_mm'])
        assert count
        assert not wrong
        kinds.update(found)
    assert kinds > {'Conv', 'FloatCall', 'RoIAlign', 'Linear', 'Concat'}


def test_a_wrong_code_is_found(monkeypatch):
    right = ReferenceBackend.quantize

    def wrong(self, node, x):
        codes = right(self, node, x)
        codes.view(-1)[-1] += 1
        return codes

    monkeypatch.setattr(ReferenceBackend, 'quantize', wrong)
    assert compare(0, 12, ['cpu'])[1] == ['graph 0: cpu differs first in x']


def test_random_graphs_are_made_again_by_their_seed():
    first, again, other = random_graph(5), random_graph(5), random_graph(6)
    assert first.graph.nodes == again.graph.nodes != other.graph.nodes
    assert all(map(torch.equal, first.inputs, again.inputs))


def test_threads_give_what_one_gives_alone(seeds):
    detector = mmclipq.load_int8(seeds / 'two_stage.clipq')
    report = soak.soak(detector, 4, 10, [(64, 64), (96, 64), (64, 128)], show=False)
    assert (report['images'], report['different'], report['errors']) == (40, 0, [])


def test_processes_share_a_file(seeds, tmp_path, capsys):
    arguments = [seeds / 'fcos.clipq', '--threads', '2', '--images', '5', '--sizes', '2']
    arguments += ['--side', '64', '--processes', '2', '--plot', tmp_path / 'a.svg']
    with pytest.raises(SystemExit) as caught:
        soak.main([*map(str, arguments), '--json', str(tmp_path / 'a.json')])
    printed = capsys.readouterr().out
    assert printed.count('10 images in') == 2
    assert caught.value.code == 0, printed
    assert (tmp_path / 'a.svg').read_text().rstrip().endswith('</svg>')
    reports = json.loads((tmp_path / 'a.json').read_text())
    assert [report['images'] for report in reports] == [10, 10]


def test_processes_that_disagree_are_found(tmp_path, monkeypatch, capsys):
    (tmp_path / 'a.clipq').touch()
    sample = [(10, 100.0, 5, 9)]
    one = {'images': 10, 'different': 0, 'errors': [], 'seconds': 1.0, 'samples': sample}
    monkeypatch.setattr(soak, 'in_processes', lambda *a: [one | {'alone': x} for x in 'ab'])
    with pytest.raises(SystemExit) as caught:
        soak.main([str(tmp_path / 'a.clipq'), '--processes', '2'])
    assert caught.value.code == 1
    assert 'an image alone gives different results' in capsys.readouterr().out


def test_what_a_long_run_must_not_show():
    flat = [(10, 100.0, 5, 9), (50, 101.0, 5, 9), (100, 101.0, 5, 2)]
    report = {'images': 100, 'different': 0, 'errors': [], 'samples': flat}
    assert soak.verdict(report) == []
    for changes, text in (
        ({'different': 3}, '3 results differ'),
        ({'errors': ['X: y']}, 'a thread ended with X: y'),
        ({'samples': [*flat, (100, 110.0, 5, 2)]}, 'memory grew from 100 to 110 MiB'),
        ({'samples': [*flat, (100, 100.0, 6, 2)]}, 'open files grew from 5 to 6'),
        ({'samples': [*flat, (100, 100.0, 5, 11)]}, 'threads grew from 9 to 11'),
    ):
        assert soak.verdict({**report, **changes}) == [text]
