"""Every shipped config loads and builds, and the base is found from another project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import mmclipq
from mmclipq.apis import build_detector
from mmclipq.apis.clipq_config import DEFAULTS, clipq_options
from mmclipq.engine import ClipQHook
from mmclipq.models.losses import LqLoss
from mmclipq.prepare import prepare_model, prepare_options
from mmclipq.registry import HOOKS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT / 'configs') for path in ROOT.glob('configs/**/*.py'))
DETECTORS = [path for path in CONFIGS if '_base_' not in path.parts]
STOCK = 'mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py'
MMDET_TOOL = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
HOOK_TYPES = ['mmclipq.ClipQHook', 'mmclipq.Int8ExportHook']


def load(path: Path) -> Config:
    return Config.fromfile(ROOT / 'configs' / path)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_loads(path):
    assert len(load(path)) > 0


@pytest.mark.parametrize('path', DETECTORS, ids=str)
def test_detector_builds_and_its_clipq_section_fits(path):
    cfg = load(path)
    detector = build_detector(cfg.model)
    classes = cfg.get('metainfo', {}).get('classes')
    if classes is not None:
        head = getattr(detector, 'roi_head', detector).bbox_head
        assert head.num_classes == len(classes)
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    assert [kind for kind in hooks if kind in HOOK_TYPES] == (
        HOOK_TYPES if path.name.startswith('clipq') else []
    )
    options = clipq_options(cfg.get('clipq'))
    assert len(prepare_model(detector, **prepare_options(options)).clipped) > 30


def float_control(path: Path) -> Path:
    name = path.name.replace('clipq_small_', 'clipq_').replace('clipq_', 'finetune_')
    return path.with_name(name.replace('_paper', ''))


PAIRS = [path for path in DETECTORS if float_control(path) in DETECTORS and 'clipq' in path.name]


@pytest.mark.parametrize('path', PAIRS, ids=str)
def test_clipq_config_differs_from_its_float_control_in_clipping_only(path):
    clipped, plain = load(path).to_dict(), load(float_control(path)).to_dict()
    assert 'clipq' not in plain
    assert clipped.pop('clipq')
    assert [hook['type'] for hook in clipped.pop('custom_hooks')] == HOOK_TYPES
    assert clipped == plain


def test_base_holds_the_defaults_of_the_hook():
    base = load(Path('_base_/clipq.py'))
    assert set(base) == {'clipq', 'custom_hooks'}
    section = base.clipq.to_dict()
    assert section.keys() == DEFAULTS.keys()
    nested = {'rules', 'first_layer', 'last_layer', 'lq', 'int8'}
    small = load(Path('_base_/clipq_small.py')).clipq.to_dict()
    assert small.pop('int8') == {**section['int8'], 'bias_correction': True}
    assert small == {name: value for name, value in section.items() if name != 'int8'}
    assert {k: v for k, v in section.items() if k not in nested} == {
        k: v for k, v in DEFAULTS.items() if k not in nested
    }
    assert not any(section[key] for key in ('rules', 'first_layer', 'last_layer'))
    assert vars(LqLoss(**section['lq'])).items() >= {
        (k, v) for k, v in vars(LqLoss(**DEFAULTS['lq'])).items() if not isinstance(v, dict | set)
    }


@pytest.mark.parametrize(
    ('option', 'kind'),
    [
        ('input_range=8.0', float),
        ('first_layer=dict(skip=True)', dict),
        ('last_layer=dict(input_range=16.0)', dict),
        ("rules=[dict(pattern='neck.*', skip=True)]", list),
        ('lq=None', type(None)),
    ],
)
def test_every_option_of_the_base_can_be_overridden(tmp_path, option, kind):
    base = ROOT / 'configs' / '_base_' / 'clipq.py'
    (tmp_path / 'my.py').write_text(f'_base_ = [{str(base)!r}]\nclipq = dict({option})\n')
    cfg = Config.fromfile(tmp_path / 'my.py')
    name = option.split('=')[0]
    assert isinstance(cfg.clipq[name], kind)
    assert cfg.clipq.observe_iters == 8


@pytest.mark.parametrize('way', ['copy', 'import', 'scope'])
def test_base_is_found_from_another_project(tmp_path, way):
    shutil.copy(ROOT / 'configs' / '_base_' / 'clipq.py', tmp_path / 'copied_clipq.py')
    base = {
        'copy': "'./copied_clipq.py'",
        'import': "__import__('mmclipq').base_config()",
        'scope': "'mmclipq::_base_/clipq.py'",
    }[way]
    text = f'_base_ = [{STOCK!r}, {base}]\nclipq = dict(input_range=8.0)\n'
    (tmp_path / 'my.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'my.py')
    wanted = Config.fromfile(mmclipq.base_config())
    assert cfg.clipq == {**wanted.clipq, 'input_range': 8.0}
    assert [HOOKS.build(hook) for hook in cfg.custom_hooks][0].__class__ is ClipQHook
    assert cfg.model.type == 'YOLOV3'


@pytest.mark.parametrize(
    ('way', 'tool'), [('import', 'mmdet'), ('copy', 'mmdet'), ('scope', 'own')]
)
def test_training_tool_runs_a_config_of_another_project(tmp_path, digits_root, way, tool):
    bases = {
        'copy': "'./copied_clipq.py'",
        'import': "__import__('mmclipq').base_config()",
        'scope': "'mmclipq::_base_/clipq.py'",
    }
    shutil.copy(ROOT / 'configs' / '_base_' / 'clipq.py', tmp_path / 'copied_clipq.py')
    mine = ROOT / 'configs' / 'quickstart' / 'finetune_yolov3_digits.py'
    (tmp_path / 'my.py').write_text(
        f'_base_ = [{str(mine)!r}, {bases[way]}]\n'
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1, val_interval=9)\n"
        'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)\n'
        'val_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        'param_scheduler = None\n'
        'clipq = dict(observe_iters=1, int8=dict(calib_images=1))\n'
        'default_hooks = dict(checkpoint=dict(by_epoch=False))\n'
    )
    script = MMDET_TOOL if tool == 'mmdet' else ROOT / 'tools' / 'train.py'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(script), 'my.py', '--work-dir', 'out'],
        cwd=tmp_path,
        env={**os.environ, 'DIGITS_ROOT': str(digits_root), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '75 layers clipped' in done.stdout + done.stderr
    assert (tmp_path / 'out' / 'iter_1_int8.clipq').is_file()


OWN_HOOKS = {
    'clipq_yolox_tiny.py': 'yolox/yolox_tiny_8xb8-300e_coco.py',
    'clipq_rtmdet_tiny.py': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'clipq_ssdlite.py': 'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
}


@pytest.mark.parametrize('name', OWN_HOOKS)
def test_config_with_own_hooks_keeps_them(name):
    stock = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / OWN_HOOKS[name])
    ours = load(Path(name))
    types = [hook['type'] for hook in ours.custom_hooks]
    assert types == [hook['type'] for hook in stock.custom_hooks] + HOOK_TYPES
    assert {k: v for k, v in ours.model.items() if k != '_scope_'} == stock.model


COCO = [path for path in DETECTORS if len(path.parts) == 1]


@pytest.mark.parametrize('path', COCO, ids=str)
def test_leaf_config_is_short_and_trains_its_stock_detector(path):
    text = (ROOT / 'configs' / path).read_text().splitlines()
    assert len([line for line in text if line and not line.startswith('#')]) <= 12
    cfg = load(path)
    init_default_scope('mmdet')
    Compose(cfg.train_dataloader.dataset.get('pipeline', []))
    model = build_detector(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert min(group['lr'] for group in wrapper.param_groups) > 0
    assert cfg.train_cfg.max_epochs <= 12


def test_rtmdet_leaf_trains_on_the_pipeline_of_the_last_stage():
    cfg = load(Path('clipq_rtmdet_tiny.py'))
    types = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert 'CachedMosaic' not in types
    switch = next(hook for hook in cfg.custom_hooks if hook['type'] == 'PipelineSwitchHook')
    assert types == [step['type'] for step in switch['switch_pipeline']]
