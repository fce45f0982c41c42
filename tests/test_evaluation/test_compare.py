"""The table, the picture and the tools that make them."""

import json
import math
import runpy
import sys
from pathlib import Path

import cv2
import pytest

from mmclipq.apis import load_int8
from mmclipq.evaluation.compare import Row, draw_side_by_side, table, weight_bytes
from mmclipq.evaluation.evaluate import Evaluation, evaluate

TOOLS = Path(__file__).parents[2] / 'tools'


def run_tool(monkeypatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')


@pytest.fixture
def config_file(cfg, tmp_path):
    path = tmp_path / 'config.py'
    cfg.dump(path)
    return path


@pytest.mark.parametrize(
    ('metrics', 'ap', 'ap50'),
    [
        ({'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5}, 0.25, 0.5),
        ({'pascal_voc/mAP': 0.75, 'pascal_voc/AP50': 0.7}, 0.75, 0.7),
        ({'accuracy': 1.0}, math.nan, math.nan),
    ],
)
def test_metrics_of_different_evaluators(metrics, ap, ap50):
    result = Evaluation(metrics, 1.0, 1)
    assert [str(result.ap), str(result.ap50)] == [str(ap), str(ap50)]


def test_evaluation_covers_every_image(cfg, model):
    result = evaluate(model, cfg)
    assert result.images == 6
    assert result.milliseconds > 0


def test_table_relates_sizes_to_the_first_row():
    rows = [Row('float', 0.5, 0.75, 4 * 2**20, 10.0), Row('int8', 0.25, 0.5, 2**20, 2.5)]
    lines = table(rows).split('\n')
    assert lines[2] == '| float | 0.500 | 0.750 | 4.00 | 100.00% | 10.0 |'
    assert lines[3] == '| int8 | 0.250 | 0.500 | 1.00 | 25.00% | 2.5 |'


def test_picture_has_a_column_per_detector(cfg, model, checkpoints, tmp_path):
    columns = [('float', model), ('int8', load_int8(checkpoints[1]))]
    draw_side_by_side(columns, cfg, tmp_path / 'new' / 'picture.png', images=3, height=96)
    picture = cv2.imread(str(tmp_path / 'new' / 'picture.png'))
    assert picture.shape[1] == 2 * 72
    assert picture.shape[0] == 3 * (96 + 28)
    with pytest.raises((OSError, cv2.error)):
        draw_side_by_side(columns[:1], cfg, tmp_path / 'picture.txt', images=1, height=96)


def test_compare_prints_and_writes(config_file, checkpoints, tmp_path, monkeypatch, capsys, model):
    float_file, int8_file = checkpoints
    options = ['--float', float_file, '--clipped', float_file, '--int8', int8_file]
    run_tool(monkeypatch, 'compare', config_file, *options, '--json', tmp_path / 'out.json')
    first, second = capsys.readouterr().out.split('\n\n')[-2:]
    found = [line.split('|')[1].strip() for line in first.split('\n') if line.startswith('| ')]
    assert found == ['detector', 'float', 'clipped float', 'int8']
    found = [line.split('|') for line in second.split('\n') if line.startswith('| ')]
    names = [row[1].strip() for row in found[1:]]
    assert names == ['clipped float, AP', 'clipped float, AP50', 'int8, AP', 'int8, AP50']
    assert found[1][6].strip() == 'no difference that these images can show'
    rows = json.loads((tmp_path / 'out.json').read_text())
    assert rows[0]['size'] == weight_bytes(model)
    assert rows[2]['size'] == int8_file.stat().st_size
    assert [row['against']['detector'] for row in rows[1:]] == ['float', 'float']
    assert rows[2]['against']['rows'][0]['name'] == 'AP'


def test_verify_tool(config_file, checkpoints, monkeypatch, capsys):
    run_tool(monkeypatch, 'verify', config_file, *checkpoints, '--images', 2)
    out = capsys.readouterr().out
    assert '2 images, ' in out
    assert 'integers against dequantized float64: 0 tensors differ' in out


def test_missing_files_are_named(config_file, checkpoints, monkeypatch):
    for tool, arguments in (
        ('compare', [config_file, '--float', 'absent.pth']),
        ('compare', ['absent.py', '--float', checkpoints[0]]),
        ('verify', [config_file, checkpoints[0], 'absent.clipq']),
    ):
        with pytest.raises(SystemExit, match=r'^error: absent\.\w+: found no file'):
            run_tool(monkeypatch, tool, *arguments)


def test_training_benchmark_counts_the_second_copy(config_file, monkeypatch, capsys):
    options = ['--shape', 64, 64, '--batch', 1, '--rounds', 1]
    run_tool(monkeypatch, 'benchmark_training', config_file, *options)
    rows = [line.split('|') for line in capsys.readouterr().out.split('\n') if line[:2] == '| ']
    memory = {row[1].strip(): float(row[5]) for row in rows[1:]}
    assert memory['stock'] == memory['clipped'] == 1.0
    assert memory['naive clamps'] > 1.2
