"""Definitions are valid, and complete against the paper's tables."""

import re
from pathlib import Path

import pytest

from mmclipq.errors import ClipQError
from mmclipq.experiments.definitions import (
    DATASETS,
    TABLES,
    detector_of,
    load_dataset,
    load_table,
    parse_table,
    tables_for,
)
from mmclipq.experiments.recipe import Recipes, config_file

PAPER = Path(__file__).parents[3] / 'shared' / 'paper.txt'
ROWS = {
    'table1': 4, 'table2': 6, 'table3': 5, 'table4': 3, 'table5': 5, 'table6': 4, 'table7': 3,
    'table8': 5,
}  # fmt: skip
SIX = [name for name in ROWS if name != 'table8']


@pytest.mark.parametrize('name', TABLES)
def test_a_definition_has_a_detector_on_digits_and_all_its_configs(name):
    table = load_table(name)
    for data in DATASETS:
        dataset = load_dataset(data)
        detector = detector_of(table, dataset, None)
        if detector is None:
            continue
        recipes = Recipes(dataset, detector)
        for row in table.rows:
            if row.run.svd is None or 'svd_rank' in recipes.entry:
                assert recipes.config(row.run).model is not None
    assert len({row.name for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize('data', DATASETS)
def test_every_config_of_a_data_set_is_there(data):
    for entry in load_dataset(data).detectors.values():
        assert Path(config_file(entry['float'])).is_file()
        assert Path(config_file(entry['finetune'])).is_file()


@pytest.mark.parametrize('name', ROWS)
def test_a_table_has_the_papers_rows(name):
    rows = [row for row in load_table(name).rows if row.paper is not None]
    assert len(rows) == ROWS[name]
    assert {len(row.paper) for row in rows} == {4 if name == 'table8' else 6}


def test_table9_has_the_papers_lines():
    table = load_table('table9')
    assert set(table.extra['paper_lines']) == {'voc', 'coco', 'imagenet'}
    assert {len(line) for line in table.extra['paper_lines'].values()} == {len(table.rows)}


@pytest.mark.parametrize('name', SIX)
def test_the_numbers_are_those_of_the_paper(name):
    if not PAPER.is_file():
        pytest.skip('needs the text of the paper, ../shared/paper.txt')
    number = name.removeprefix('table')
    text = PAPER.read_text(encoding='utf-8').rpartition(f'\nTable {number}. ')[2]
    text = re.split(r'\n(?:Table|Publisher)', text)[0].replace('\n', '')
    for row in load_table(name).rows:
        if row.paper is not None:
            # The paper drops trailing zeros here and there.
            digits = (re.escape(f'{value:.4f}'.rstrip('0')) + '0*' for value in row.paper)
            assert re.search(''.join(digits), text), row.name


def test_options_of_a_table_reach_its_rows_and_rows_win():
    content = {
        'title': 'T',
        'detectors': ['yolov3'],
        'clipq': {'input_range': 8, 'lq': None, 'int8': {'offsets': False}},
        'rows': [
            {'name': 'a', 'clipq': {'input_range': 4, 'int8': {'method': 'max'}}},
            {'name': 'b'},
        ],
    }
    a, b = parse_table('t', content).rows
    assert a.run.clipq == {
        'input_range': 4,
        'lq': None,
        'int8': {'offsets': False, 'method': 'max'},
    }
    assert b.run.clipq is None


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'columns': 3}, r"t: found \['columns'\]"),
        ({'kind': 'pie'}, "t: kind: found 'pie'"),
        ({'rows': [{'name': 'a', 'base': 'sand'}]}, "t, a: base: found 'sand'"),
        ({'rows': [{'name': 'a', 'form': 'int4'}]}, "t, a: form: found 'int4'"),
        ({'rows': [{'name': 'a', 'clip': {}}]}, r"t, a: found \['clip'\]"),
        ({'rows': [{'name': 'a', 'base': 'scratch'}]}, 't, a: found base scratch without clipq'),
        ({'compare': [['a', 'c']]}, "t: compare: found 'c'"),
    ],
)
def test_a_mistake_in_a_definition_is_named(change, said):
    content = {'title': 'T', 'detectors': ['yolov3'], 'rows': [{'name': 'a'}], **change}
    with pytest.raises(ClipQError, match=said):
        parse_table('t', content)


def test_tables_of_another_detector_are_left_out_of_several_and_named_alone():
    digits = load_dataset('digits')
    assert set(tables_for(['table4', 'table6'], digits, 'yolov3')) == {'table4'}
    with pytest.raises(ClipQError, match='table6: found no config of yolov3 on digits'):
        tables_for(['table6'], digits, 'yolov3')


def test_an_unknown_name_is_told():
    with pytest.raises(ClipQError, match="table: found 'table10'"):
        load_table('table10')
    with pytest.raises(ClipQError, match="--data: found 'cifar'"):
        load_dataset('cifar')
