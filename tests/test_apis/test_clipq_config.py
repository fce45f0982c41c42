"""with_clipq on every kind of config, its errors, and the tools' flag that uses it."""

import argparse
import copy
from pathlib import Path

import mmdet
import pytest
from mmdet.models import RetinaNet
from mmengine.config import Config
from mmengine.hooks import EMAHook

import mmclipq
from mmclipq.apis.clipq_config import DEFAULTS, clipq_hooks, with_clipq
from mmclipq.apis.clipq_flag import add_clipq_flag, first_config_clipped
from mmclipq.errors import ClipQError
from mmclipq.registry import HOOKS

STOCK = Path(mmdet.__file__).parent / '.mim' / 'configs'
OWN = Path(__file__).parents[2] / 'configs'
HOOK_TYPES = ['mmclipq.ClipQHook', 'mmclipq.Int8ExportHook']
PLAIN = STOCK / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'
WITH_HOOKS = {
    'yolox': STOCK / 'yolox' / 'yolox_tiny_8xb8-300e_coco.py',
    'rtmdet': STOCK / 'rtmdet' / 'rtmdet_tiny_8xb32-300e_coco.py',
}


def types_of(cfg: Config) -> list[str]:
    return [hook['type'] for hook in cfg.get('custom_hooks', [])]


def section() -> dict:
    return Config.fromfile(mmclipq.base_config()).clipq.to_dict()


def test_plain_config_gets_what_the_base_gives():
    cfg = Config.fromfile(PLAIN)
    before = cfg.to_dict()
    found = with_clipq(cfg)
    assert cfg.to_dict() == before
    changed = found.to_dict()
    assert changed.pop('clipq') == section()
    assert [hook['type'] for hook in changed.pop('custom_hooks')] == HOOK_TYPES
    assert changed == before
    assert found.filename == cfg.filename


@pytest.mark.parametrize('path', WITH_HOOKS.values(), ids=WITH_HOOKS)
def test_own_hooks_stay_in_front(path):
    cfg = Config.fromfile(path)
    found = with_clipq(cfg)
    assert types_of(found) == types_of(cfg) + HOOK_TYPES
    assert found.custom_hooks[: len(cfg.custom_hooks)] == cfg.custom_hooks
    assert found.model == cfg.model


def test_pure_python_config_keeps_its_classes(tmp_path):
    (tmp_path / 'my.py').write_text(
        'from mmdet.models import RetinaNet\n'
        'from mmengine.hooks import EMAHook\n'
        'model = dict(type=RetinaNet)\n'
        "custom_hooks = [dict(type=EMAHook, ema_type='ExpMomentumEMA')]\n"
    )
    found = with_clipq(Config.fromfile(tmp_path / 'my.py'), {'input_range': 8.0})
    assert found.clipq.input_range == 8.0
    assert types_of(found) == [EMAHook, *HOOK_TYPES]
    assert found.model.type is RetinaNet
    found.dump(tmp_path / 'dumped.py')
    again = with_clipq(Config.fromfile(tmp_path / 'dumped.py'))
    assert again.clipq.input_range == 8.0
    assert len(again.custom_hooks) == 3


@pytest.mark.parametrize('name', ['clipq_yolov3.py', 'clipq_yolox_tiny.py'])
def test_config_that_has_the_base_is_left_alone(name):
    cfg = Config.fromfile(OWN / name)
    found = with_clipq(cfg)
    assert found.custom_hooks == cfg.custom_hooks
    assert found.clipq.to_dict() == {**section(), **cfg.get('clipq', {})}
    again = with_clipq(found)
    assert again.to_dict() == found.to_dict()


def test_options_win_over_the_section_and_that_over_the_base():
    cfg = Config.fromfile(PLAIN)
    cfg.clipq = dict(input_range=4.0, weight_range=0.5, lq=dict(loss_weight=0.5))
    found = with_clipq(cfg, {'input_range': 8, 'lq.warmup_iters': 3, 'first_layer.skip': True})
    assert found.clipq.to_dict() == {
        **section(),
        'input_range': 8,
        'weight_range': 0.5,
        'lq': dict(loss_weight=0.5, target='grid', warmup_iters=3),
        'first_layer': dict(skip=True),
    }


def test_lq_can_be_switched_off_and_on():
    off = with_clipq(Config.fromfile(PLAIN), {'lq': None})
    assert off.clipq.lq is None
    assert with_clipq(off, {'lq.loss_weight': 1.0}).clipq.lq == dict(loss_weight=1.0)


def test_options_win_over_those_of_the_hook_itself():
    cfg = Config.fromfile(PLAIN)
    cfg.custom_hooks = [dict(type='ClipQHook', input_range=4.0, weight_range=0.5, priority=10)]
    found = with_clipq(cfg, {'input_range': 8.0})
    assert types_of(found) == ['ClipQHook', 'mmclipq.Int8ExportHook']
    assert found.custom_hooks[0] == dict(type='ClipQHook', priority=10)
    assert (found.clipq.input_range, found.clipq.weight_range) == (8.0, 0.5)


def test_result_survives_a_dump(tmp_path):
    found = with_clipq(Config.fromfile(WITH_HOOKS['rtmdet']), {'weight_range': 0.5})
    found.dump(tmp_path / 'dumped.py')
    read = Config.fromfile(tmp_path / 'dumped.py')
    assert read.clipq == found.clipq
    assert types_of(read) == types_of(found)
    assert [HOOKS.build(hook).__class__.__name__ for hook in read.custom_hooks[-2:]] == [
        'ClipQHook',
        'Int8ExportHook',
    ]


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'input_rnage': 8}, ["clipq: found options ['input_rnage']", "'input_range'"]),
        ({'input_range': 6}, ['input_range: found 6', 'power of two']),
        ({'lq.weight': 1}, ["clipq.lq: found options ['weight']", "'loss_weight'"]),
        ({'lq': 1}, ['clipq.lq: found 1', 'wanted a dict']),
        ({'int8.method': 'wishful'}, ["found calibration method 'wishful'", "'mse'"]),
        ({'int8.images': 1}, ["clipq.int8: found options ['images']", "'calib_images'"]),
        ({'first_layer.skp': True}, ["first_layer: found ['skp']"]),
        ({'last_layer': True}, ['last_layer: found True', 'wanted a dict']),
        ({'rules': [{'skip': True}]}, ["without 'pattern'"]),
        ({'rules': ['neck.*']}, ["found neck.* without 'pattern'"]),
        ({'rules': 'neck.*'}, ["rules: found 'neck.*'", 'wanted a list']),
        ({'observe_iters': 0}, ['observe_iters=0']),
        ({'observe_iters': 'few'}, ['observe_iters=few']),
        ({'percentile': 101}, ['percentile=101']),
    ],
)
def test_wrong_option_is_named_in_one_sentence(options, words):
    with pytest.raises(ClipQError) as caught:
        with_clipq(Config.fromfile(PLAIN), options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert '\n' not in str(caught.value)


def test_hooks_of_a_base_without_any_are_those_of_the_base():
    assert [hook['type'] for hook in clipq_hooks({})] == HOOK_TYPES


def test_one_line_of_a_config_adds_the_hooks(tmp_path):
    (tmp_path / 'my.py').write_text(
        f'_base_ = {str(WITH_HOOKS["yolox"])!r}\n'
        "custom_hooks = __import__('mmclipq').clipq_hooks(_base_)\n"
    )
    cfg = Config.fromfile(tmp_path / 'my.py')
    assert types_of(cfg) == types_of(Config.fromfile(WITH_HOOKS['yolox'])) + HOOK_TYPES


def parsed(*arguments: str) -> tuple[dict | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_clipq_flag(parser)
    known, rest = parser.parse_known_args(list(arguments))
    return known.clipq, rest


def test_flag_gives_options_and_leaves_the_rest():
    assert parsed('my.py', '--resume') == (None, ['my.py', '--resume'])
    assert parsed('my.py', '--clipq') == ({}, ['my.py'])
    options, rest = parsed(
        *('my.py', '--clipq', 'input_range=8', 'lq=None', 'first_layer.skip=True'),
        *('--work-dir', 'out', '--cfg-options', 'a.b=1', 'c=2'),
    )
    assert options == {'input_range': 8, 'lq': None, 'first_layer.skip': True}
    assert rest == ['my.py', '--work-dir', 'out', '--cfg-options', 'a.b=1', 'c=2']


@pytest.mark.parametrize('argument', ['my.py', '=8', 'input_range'])
def test_flag_wants_pairs(argument):
    with pytest.raises(ClipQError, match=f'--clipq: found .{argument}., wanted KEY=VALUE'):
        parsed('--clipq', argument)


def test_only_the_first_config_that_is_read_is_changed():
    stock = Config.fromfile
    with first_config_clipped({'round': True}):
        first, second = Config.fromfile(PLAIN), Config.fromfile(PLAIN)
    assert first.clipq.round
    assert 'clipq' not in second
    assert Config.fromfile is stock
    with pytest.raises(FileNotFoundError), first_config_clipped({}):
        Config.fromfile('absent.py')
    assert Config.fromfile is stock
    with first_config_clipped(None):
        assert 'clipq' not in Config.fromfile(PLAIN)


def test_defaults_are_not_changed_by_merging():
    before = copy.deepcopy(DEFAULTS)
    with_clipq(Config.fromfile(PLAIN), {'lq.loss_weight': 3, 'int8.calib_images': 1})
    assert before == DEFAULTS
