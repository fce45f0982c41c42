"""tools/coverage.py: small detectors, its limits, its page."""

import json
import time
from pathlib import Path

import mmdet
import pytest
import torch

from mmclipq import _compat
from mmclipq.apis.mmdet_tools import find_config
from mmclipq.errors import ClipQError
from mmclipq.evaluation.coverage import FAMILIES, QUICK, Outcome, Settings, cover, page, summary
from mmclipq.evaluation.coverage import run as runs
from mmclipq.evaluation.coverage.trial import Trial, largest_difference, sentence

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


def test_families_are_configs_of_mmdet_and_quick_ones_are_among_them():
    assert len(FAMILIES) == len(set(FAMILIES)) == 72
    assert set(QUICK) < set(FAMILIES)
    missing = [name for name in FAMILIES if not (CONFIGS / name).is_file()]
    assert missing == []


def test_find_config_takes_the_end_of_a_path():
    name = 'retinanet/retinanet_r18_fpn_1x_coco.py'
    assert find_config(name) == str(CONFIGS / name)
    assert find_config('retinanet_r18_fpn_1x_coco.py') == str(CONFIGS / name)
    with pytest.raises(ClipQError, match='found no file'):
        find_config(f'../configs/{name}')


def test_sentence_is_one_line():
    assert sentence(ClipQError('found x')) == 'found x'
    assert sentence(ValueError('first\nsecond')) == 'ValueError: first'
    assert sentence(ValueError()) == 'ValueError: no reason given'
    assert len(sentence(ValueError('x' * 999))) == 300


def test_difference_of_tensors_that_are_zero_but_for_rounding_is_small():
    wanted = {'weight': torch.tensor([4.0, -2.0]), 'bias': torch.tensor([1e-9])}
    assert largest_difference(wanted, wanted) == 0
    found = {'weight': torch.tensor([4.0, -1.0]), 'bias': torch.tensor([-1e-9])}
    assert largest_difference(found, wanted) == 0.25
    found['weight'] = wanted['weight']
    assert largest_difference(found, wanted) == pytest.approx(2e-9 / 4e-6, rel=1e-3)
    assert largest_difference({}, {}) == 0


SMALL = 'retinanet/retinanet_r18_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def covered(tmp_path_factory):
    """Outcomes of two small detectors, and the file that holds them."""
    path = tmp_path_factory.mktemp('coverage') / 'outcomes.json'
    names = [SMALL, 'yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py']
    settings = Settings(size=64, images=2, rounds=1)
    return cover([(name, find_config(name)) for name in names], settings, path), path


def test_small_detectors_go_all_the_way(covered):
    for outcome in covered[0]:
        assert outcome.failures == {}
        assert outcome.passed
        assert not outcome.excused
        assert outcome.loss_difference == outcome.gradient_difference == 0
        assert outcome.weights[0] == outcome.weights[1] > 1e6
        assert 0.99 < outcome.operations[0] / outcome.operations[1] <= 1
        assert outcome.codes[0] > 1e5
        assert outcome.codes[1] == 0
        assert 5 < outcome.decibels['all'] < 60
        assert outcome.file_bytes < 1.2 * outcome.weights[1]
        assert min(outcome.milliseconds) > 0
    assert [outcome.detector for outcome in covered[0]] == ['RetinaNet', 'YOLOV3']


def test_outcomes_are_kept_and_resumed(covered, monkeypatch, tmp_path):
    outcomes, path = covered
    tried = []
    monkeypatch.setattr(runs, 'try_one', lambda config, settings: tried.append(config))
    settings = Settings(size=64, images=2, rounds=1)
    again = cover([(SMALL, find_config(SMALL))], settings, path, resume=True)
    assert tried == []
    assert again == outcomes[:1]
    assert len(json.loads(path.read_text())['outcomes']) == 2
    with pytest.raises(ClipQError, match="found outcomes made with .*'size': 64.*wanted .*'size'"):
        cover([(SMALL, find_config(SMALL))], Settings(), path, resume=True)


def test_page_holds_the_table_and_the_reasons(covered):
    outcomes = [
        *covered[0],
        Outcome(
            'a/left.py',
            left={
                'no int8 form': ['x', 'y'],
                'add_1 is read by float steps only': ['add_1'],
                'boxes.add_2 is read by float steps only': ['boxes.add_2'],
                'a.b (Cell): found a loop': ['a.b'],
                'moves float32 values, computes nothing': ['view'] * 9,
            },
            file_bytes=1,
        ),
        Outcome('a/stock.py', failures={'stock predict': 'AttributeError: no loss_cls'}),
        Outcome('a/broken.py', failures={'convert': 'found a step'}),
    ]
    text = page(outcomes, 'python tools/coverage.py', runs.made_with(Settings()))
    assert '`python tools/coverage.py`' in text
    # onedl-mmdetection on the other line of packages
    package = set(_compat.installed_versions(['mmdet'])) & {'mmdet', 'onedl-mmdetection'}
    assert f'{package.pop()} {mmdet.__version__}' in text
    assert summary(outcomes) in text
    assert '3 train, convert and predict, 2 have every weight in int8, 1 fail without' in text
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    assert len(rows) == 1 + len(outcomes)
    assert len({row.count('|') for row in rows}) == 1
    assert '| retinanet_r18_fpn_1x_coco | 64 | 100.0% | 100.0% | 0 | equal | equal |' in text
    assert '* broken: convert: found a step' in text
    assert '  * 2: no int8 form (`x`, `y`)' in text
    assert '  * 2: is read by float steps only (`add_1`, `boxes.add_2`)' in text
    assert '  * 1: Cell: found a loop (`a.b`)' in text
    assert '| left |  |  |  | 5 |' in text
    assert max(len(line) for line in text.splitlines() if not line.startswith('|')) < 200


def write_config(folder: Path, model: str, extra: str = '') -> str:
    path = folder / 'trial.py'
    path.write_text(f'{extra}\nmodel = dict({model})\n')
    return str(path)


def test_failure_names_its_stage_and_what_needs_it_is_not_tried(tmp_path):
    told = []
    config = write_config(tmp_path, "type='NoSuchDetector'")
    outcome = Trial(config, Settings(), tmp_path, lambda o: told.append(o.stage)).run()
    assert list(outcome.failures) == ['build']
    assert 'NoSuchDetector' in outcome.failures['build']
    assert told == ['build', 'build']
    assert not outcome.passed
    assert not outcome.excused
    (tmp_path / 'other').mkdir()
    lacking = write_config(tmp_path / 'other', '', "custom_imports = dict(imports=['no_such'])")
    outcome = Trial(lacking, Settings(), tmp_path, lambda o: None).run()
    assert list(outcome.failures) == ['build']
    assert outcome.excused


ENDLESS = """
import time
def wait():
    start = time.{clock}()
    while time.{clock}() - start < 100:
        {body}
wait()
"""


@pytest.mark.parametrize(
    ('clock', 'body', 'seconds', 'patience', 'words'),
    [
        ('process_time', 'pass', 6, 10, 'found no end after 6 seconds of processor time'),
        # Imports take seconds of the processor, too.
        ('time', 'time.sleep(0.1)', 20, 0.5, 'found no end after 10 seconds'),
    ],
    ids=['busy', 'waiting'],
)
def test_endless_trial_is_ended(tmp_path, monkeypatch, clock, body, seconds, patience, words):
    monkeypatch.setattr(runs, '_PATIENCE', patience)
    config = write_config(tmp_path, '', ENDLESS.format(clock=clock, body=body))
    settings = Settings(seconds=seconds)
    start = time.monotonic()
    outcome = runs.try_one(config, settings)
    assert outcome.failures == {'build': words}
    assert time.monotonic() - start < 90


def test_trial_that_takes_too_much_memory_says_so(tmp_path):
    config = write_config(tmp_path, '', "block = 'x' * (3 << 30)")
    outcome = runs.try_one(config, Settings(gigabytes=2))
    assert 'MemoryError' in outcome.failures['build']


def test_trial_that_dies_is_told(tmp_path):
    config = write_config(tmp_path, '', "__import__('signal').raise_signal(11)")
    outcome = runs.try_one(config, Settings())
    assert outcome.failures['build'].startswith('the process was ended by SIGSEGV')


def test_outcome_survives_json():
    outcome = Outcome('a.py', weights=(1, 2), codes=(3, 0), milliseconds=(1.5, 2.5))
    assert Outcome.from_dict(json.loads(json.dumps(outcome.as_dict()))) == outcome
