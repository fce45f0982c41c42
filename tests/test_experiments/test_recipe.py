"""Jobs of runs: what is shared, and what makes another job of it."""

from dataclasses import replace

import pytest

from mmclipq.experiments.definitions import Run, load_dataset, load_table
from mmclipq.experiments.files import RESULT, job_config, write
from mmclipq.experiments.recipe import Recipes
from mmclipq.experiments.summary import jobs_of
from mmclipq.experiments.training import start_of, train


@pytest.fixture
def recipes(digits):
    return Recipes(load_dataset('digits'), 'yolov3')


CLIPPED = Run(clipq={'input_range': 8, 'weight_range': 0.125, 'lq': None})


def trainings(recipes, name, seeds=(0,)):
    jobs = jobs_of(load_table(name), recipes, seeds)
    return {one.key for job in jobs for one in job.chain() if one.kind == 'train'}


def test_table3_trains_what_tables_1_and_2_have_trained_and_one_more(recipes):
    before = trainings(recipes, 'table1') | trainings(recipes, 'table2')
    # Ranges found on the data, which the paper does not have.
    assert len(trainings(recipes, 'table3') - before) == 1
    # Stock, control, and of 3 + 5 clipped ones the first is in both tables.
    assert len(before) == 2 + 3 + 5 - 1


def test_seeds_share_nothing(recipes):
    first, second = trainings(recipes, 'table4'), trainings(recipes, 'table4', (1,))
    assert len(first) == len(second) == 8
    assert not first & second


def test_a_measurement_needs_its_training_and_that_the_stock_one(recipes):
    chain = recipes.measurement(replace(CLIPPED, form='int8'), 0).chain()
    assert [job.kind for job in chain] == ['train', 'train', 'measure']
    assert chain[0].key == recipes.training(Run('float'), 0).key
    assert chain[1].needs == (chain[0],)


@pytest.mark.parametrize(
    ('option', 'value', 'same'),
    [
        ('int8', {'method': 'max'}, True),
        ('input_range', 4, False),
        ('lq', {'loss_weight': 0.1, 'target': 'clip'}, False),
        ('round', True, False),
    ],
)
def test_what_only_converts_shares_the_training(recipes, option, value, same):
    other = replace(CLIPPED, clipq={**CLIPPED.clipq, option: value})
    first, second = recipes.training(CLIPPED, 0), recipes.training(other, 0)
    assert (first.key == second.key) is same
    assert recipes.measurement(CLIPPED, 0).key != recipes.measurement(other, 0).key


def test_conversion_without_training_starts_at_the_stock_detector(recipes):
    job = recipes.measurement(Run('float', clipq=CLIPPED.clipq, form='int8'), 0)
    assert job.needs == (recipes.training(Run('float'), 0),)


def test_a_config_comes_back_as_it_was(recipes):
    cfg = recipes.config(CLIPPED)
    assert job_config(recipes.training(CLIPPED, 0).config).model == cfg.model
    assert cfg.clipq.lq is None
    assert [hook['type'] for hook in cfg.custom_hooks] == ['mmclipq.ClipQHook']


def test_svd_has_its_rank_and_rate(digits):
    cfg = Recipes(load_dataset('digits'), 'faster_rcnn').config(Run(svd=0.01, clipq={}))
    assert cfg.model.roi_head.bbox_head.type == 'mmclipq.SVDBBoxHead'
    assert cfg.model.roi_head.bbox_head.svd_rank == 64
    rates = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert rates.shared_fcs.lr_mult == 0.01


def test_the_budget_wins(digits):
    short = Recipes(load_dataset('digits'), 'yolov3', {'train_cfg.max_epochs': 1})
    assert short.config(CLIPPED).train_cfg.max_epochs == 1
    assert short.config(Run('float')).train_cfg.max_epochs == 1


def test_a_trained_checkpoint_takes_the_place_of_the_stock_training(recipes, tmp_path):
    """For all seeds; another file makes other jobs of all that starts there."""
    path = tmp_path / 'zoo.pth'
    keys = set()
    for content in (b'one', b'two'):
        path.write_bytes(content)
        own = Recipes(recipes.dataset, 'yolov3', stock=path)
        first, second = (own.training(CLIPPED, seed) for seed in (0, 1))
        assert first.needs == second.needs
        folder = tmp_path / first.needs[0].folder
        folder.mkdir()
        found = train(None, first.needs[0].content, folder, [])
        write(folder / RESULT, found)
        assert start_of([folder]) == path
        keys |= {first.key, first.needs[0].key}
    assert len(keys) == 4
