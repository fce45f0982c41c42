"""A table from nothing on tiny data, in this process; a training that goes on; the tool's words."""

import json
from dataclasses import replace

import paper
import pytest
import torch
from finished import Done
from mmengine.runner import EpochBasedTrainLoop

from mmclipq.errors import ClipQError
from mmclipq.experiments import definitions, report, run
from mmclipq.experiments.definitions import Run, load_dataset
from mmclipq.experiments.files import job_config
from mmclipq.experiments.recipe import Recipes
from mmclipq.experiments.run import Request, make_tables
from mmclipq.experiments.training import train


@pytest.fixture
def request_of(tmp_path, budget):
    def make(*tables, data='digits', **fields):
        return Request(
            tables, data, 1, None, tmp_path / 'work', tmp_path / 'out', budget=budget, **fields
        )

    return make


@pytest.fixture
def short_table1(monkeypatch):
    """Table 1 without its rows in the middle."""
    table = definitions.load_table('table1')
    rows = (table.rows[0], *table.rows[-2:])
    short = replace(table, rows=rows, compare=table.compare[:1])
    others = definitions.load_table
    monkeypatch.setattr(
        definitions, 'load_table', lambda name: short if name == 'table1' else others(name)
    )


def test_a_table_is_trained_measured_and_written_once(
    digits, here, request_of, short_table1, tmp_path
):
    request = request_of('table1', 'figure7')
    pages = dict(make_tables(request, here))
    lines = pages['table1'].splitlines()
    assert '| *the paper, VOC* | *0.5853* | *0.7990* | *0.6417* | *0.4700* |' in pages['table1']
    names = [line.split(' | ')[0] for line in lines]
    paper_row = '| *the paper, VOC*'
    assert names[4:9] == ['| input ±8', paper_row, '| Baseline', paper_row, '| Float control']
    found = json.loads((tmp_path / 'out' / 'table1_digits.json').read_text())
    row = found['rows'][0]
    assert row['by_seed']['0'].keys() >= {'AP', 'AR100', 'bytes'}
    (compared,) = found['comparisons']
    assert (compared['first'], compared['second']) == ('Float control', 'input ±8')
    assert (tmp_path / 'out' / 'figure7_digits.png').read_bytes()[1:4] == b'PNG'
    shares = json.loads((tmp_path / 'out' / 'figure7_digits.json').read_text())['rows'][0]
    within = [v['mean'] for k, v in shares['numbers'].items() if k.startswith('within')]
    assert sum(within) + shares['numbers']['beyond']['mean'] == pytest.approx(1, abs=1e-6)

    def fail(folder, threads):
        raise AssertionError(f'{folder} again')

    here.start = fail
    assert dict(make_tables(request, here)) == pages


def test_a_report_runs_nothing_and_leaves_dashes(digits, here, request_of):
    here.start = None
    ((_, page),) = make_tables(request_of('table4', report=True), here)
    assert '| L | – | – | – | – | – | – |' in page
    assert 'one seed, at most 0 of them done' in page


def test_a_failed_run_is_told_after_the_pages_are_written(digits, here, request_of):
    here.start = lambda folder, threads: Done(1)
    pages = make_tables(request_of('table4'), here)
    assert next(pages)[0] == 'table4'
    with pytest.raises(ClipQError, match='found 16 runs that failed, wanted none; first: yolov3'):
        next(pages)


@pytest.mark.parametrize('data', ['voc', 'coco'])
@pytest.mark.parametrize('detector', ['yolov3', 'faster_rcnn'])
def test_configs_of_real_data_sets_read_trees_of_their_layout(trees, data, detector):
    """Images of both splits arrive as the detector's inputs, with objects, and are evaluated."""
    from mmengine.evaluator import Evaluator
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    init_default_scope('mmdet')
    dataset = load_dataset(data)
    run.find_data(dataset, trees, make=True)
    cfg = Recipes(dataset, detector).config(Run())
    inner = cfg.train_dataloader.dataset
    for part in inner.get('dataset', {}).get('datasets') or [inner]:
        part.filter_cfg = dict(filter_empty_gt=True, min_size=0, bbox_min_size=None)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 1
    train_set = Runner.build_dataloader(cfg.train_dataloader).dataset
    assert len(train_set) == (12 * 3 if data == 'voc' else 12)
    tests = Runner.build_dataloader(cfg.val_dataloader).dataset
    assert len(tests) == 6
    objects = sum(len(train_set[i]['data_samples'].gt_instances) for i in range(12))
    assert objects > 0
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = tests.metainfo
    for index in range(6):
        sample = tests[index]['data_samples'].to_dict()
        known = tests.get_data_info(index)['instances']
        boxes = torch.tensor([i['bbox'] for i in known], dtype=torch.float32)
        labels = torch.tensor([i['bbox_label'] for i in known])
        sample['pred_instances'] = {
            'bboxes': boxes,
            'scores': torch.ones(len(boxes)),
            'labels': labels,
        }
        for metric in evaluator.metrics:
            metric.process({}, [sample])
    found = {k: v for metric in evaluator.metrics for k, v in metric.evaluate(6).items()}
    assert found['coco/bbox_mAP'] == pytest.approx(1, abs=0.01)
    if data == 'voc':
        assert found['pascal_voc/mAP'] == pytest.approx(1, abs=0.01)


def test_absent_data_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipQError, match='VOC2007/ImageSets/Main/trainval.txt: found no such'):
        run.find_data(load_dataset('voc'), tmp_path, make=True)
    monkeypatch.setenv('BCCD_ROOT', str(tmp_path / 'cells'))
    with pytest.raises(ClipQError, match='cells/ImageSets/Main/train.txt: .* that BCCD_ROOT names'):
        run.find_data(load_dataset('bccd'), tmp_path, make=True)


def test_a_training_stopped_between_epochs_goes_on_there(digits, tmp_path, budget, monkeypatch):
    recipes = Recipes(load_dataset('digits'), 'yolov3', {**budget, 'train_cfg.max_epochs': 2})
    stock = recipes.training(Run('float'), 0)
    content = {**stock.content, 'validate': False}
    epochs = []
    own = EpochBasedTrainLoop.run_epoch

    def stopped(loop):
        if loop.epoch == 1 and len(epochs) == 1:
            raise KeyboardInterrupt
        epochs.append(loop.epoch)
        own(loop)

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', stopped)
    with pytest.raises(KeyboardInterrupt):
        train(job_config(stock.config), content, tmp_path, [])
    epochs.append('stopped')
    assert train(job_config(stock.config), content, tmp_path, [])['checkpoint'] == 'last.pth'
    assert epochs == [0, 'stopped', 1]
    state = torch.load(tmp_path / 'last.pth', weights_only=True)
    assert state['meta']['epoch'] == 2
    assert 'optimizer' not in state
    assert not list(tmp_path.glob('epoch_*.pth'))


def test_a_stopped_clipped_training_keeps_its_ranges(digits, tmp_path, budget, monkeypatch):
    recipes = Recipes(load_dataset('digits'), 'yolov3', {**budget, 'train_cfg.max_epochs': 2})
    job = recipes.training(Run(clipq={'lq': None}), 0)
    content = {**job.content}
    own = EpochBasedTrainLoop.run_epoch
    ranges = {}

    def stopped(loop):
        if loop.epoch == 1 and not ranges:
            last = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
            ranges.update(last['clipq'])
            raise KeyboardInterrupt
        own(loop)

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', stopped)
    with pytest.raises(KeyboardInterrupt):
        train(job_config(job.config), content, tmp_path, [])
    train(job_config(job.config), content, tmp_path, [])
    assert torch.load(tmp_path / 'last.pth', weights_only=True)['clipq'] == ranges


def test_marked_tables_are_replaced():
    text = 'a\n<!-- paper: table4 digits -->\nold\n<!-- paper: end -->\nb\n'
    assert report.replaced(text, 'table4', 'digits', 'new\n') == text.replace('old', 'new')
    assert report.replaced(text, 'table4', 'bccd', 'new\n') is None
    assert report.replaced(text.replace('end', 'x'), 'table4', 'digits', 'new\n') is None


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['table12', '--data', 'digits'], "found table 'table12', wanted all or some of table1"),
        (['table1', '--data', 'cifar'], "--data: found 'cifar'"),
        (['table1', '--data', 'digits', '--seeds', '0'], '--seeds: found 0'),
        (['table1', '--data', 'digits', '--into', 'absent.md'], 'absent.md: found no file'),
        (['table6', '--data', 'digits', '--detector', 'yolov3'], 'table6: found no config of yolo'),
        (['table6', '--data', 'digits', '--float', __file__], 'found --float alone'),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipQError, match=said):
        paper.main(arguments)


def test_a_rival_that_is_not_installed_is_a_row_that_says_how(
    digits, here, request_of, monkeypatch
):
    from mmclipq.experiments.rivals import RIVALS

    monkeypatch.setattr(type(RIVALS['nncf']), 'packages', {'absent_package': 'absent-package'})
    here.start = None
    ((_, page),) = make_tables(request_of('table8', report=True), here)
    (line,) = (line for line in page.splitlines() if 'Affine quantization' in line)
    assert line.endswith('| pip install absent-package |')


def test_rows_of_table8_convert_without_training(digits, here, budget):
    """The control's detector in ONNX Runtime, static and dynamic, against itself in float."""
    pytest.importorskip('onnxruntime')
    from mmclipq.experiments.measuring import measure

    recipes = Recipes(load_dataset('digits'), 'faster_rcnn', budget)
    runs = {name: Run(rival=f'onnxruntime-{name}') for name in ('static', 'dynamic')}
    jobs = {name: recipes.measurement(one, 0) for name, one in runs.items()}
    assert len({job.needs[0].key for job in jobs.values()}) == 1
    start = here.path(jobs['static'].needs[0])
    start.mkdir(parents=True)
    cfg = job_config(jobs['static'].config)
    from mmclipq.apis import build_detector

    torch.manual_seed(0)
    detector = build_detector(cfg.model, random=True)
    torch.save({'state_dict': detector.state_dict()}, start / 'last.pth')
    (start / 'result.json').write_text('{"checkpoint": "last.pth"}')
    whole = sum(p.numel() * 4 for p in detector.parameters())
    for name, job in jobs.items():
        folder = here.describe(job)
        found = measure(job_config(job.config), job.content, folder, start)
        assert found['executed'] == 'int8, ONNX Runtime', name
        assert 0.2 < found['bytes'] / whole < 0.35
        assert sorted(p.name for p in folder.glob('*.onnx')) == ['box.onnx', 'dense.onnx']


def test_pruned_channels_come_back(digits, budget, tmp_path):
    pytest.importorskip('torch_pruning')
    from mmclipq.apis import build_detector
    from mmclipq.experiments.rivals import RIVALS

    cfg = Recipes(load_dataset('digits'), 'faster_rcnn', budget).config(Run())
    stock = build_detector(cfg.model, random=True)
    torch.save({'state_dict': stock.state_dict()}, tmp_path / 'a.pth')
    pruned = build_detector(cfg.model, random=True)
    RIVALS['pruning'].prepare(pruned, cfg, tmp_path / 'a.pth')
    torch.save({'state_dict': pruned.state_dict()}, tmp_path / 'b.pth')
    again = RIVALS['pruning'].detector(cfg, tmp_path / 'b.pth')
    count = [sum(p.numel() for p in d.parameters()) for d in (stock, pruned, again)]
    assert count[1] == count[2] < count[0]
    image = torch.rand(1, 3, 96, 128)
    for a, b in zip(pruned.eval().extract_feat(image), again.extract_feat(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_seeds_give_mean_and_spread():
    from mmclipq.experiments.summary import Number

    assert report.number(Number.of([0.1, 0.3])) == '0.2000 ± 0.1414'
    assert report.number(Number.of([0.5])) == '0.5000'
    assert report.number(None) == report.number(Number.of([])) == '–'


def test_a_rival_trains_in_the_place_of_the_control(digits):
    recipes = Recipes(load_dataset('digits'), 'faster_rcnn')
    static, qat = Run(rival='onnxruntime-static'), Run(rival='nncf')
    assert recipes.measurement(static, 0).needs == recipes.measurement(Run(), 0).needs
    trained = recipes.measurement(qat, 0).needs[0]
    assert trained.content['rival'] == 'nncf'
    assert trained.key != recipes.training(replace(qat, rival=None), 0).key


def test_a_rival_goes_on_with_the_weights_of_the_start(digits, here, budget, monkeypatch):
    """MMEngine draws the weights of a detector anew unless a checkpoint is loaded."""
    from mmclipq.apis import build_detector
    from mmclipq.experiments.rivals import RIVALS, Rival

    class Same(Rival):
        trains = True

        def prepare(self, detector, cfg, start):
            detector.load_state_dict(torch.load(start, weights_only=True)['state_dict'])

    monkeypatch.setitem(RIVALS, 'nncf', Same())
    stopped = {**budget, 'optim_wrapper.optimizer.lr': 0.0}
    recipes = Recipes(load_dataset('digits'), 'yolov3', stopped)
    job = recipes.training(Run(rival='nncf'), 0)
    cfg = job_config(job.config)
    start = here.path(job.needs[0])
    start.mkdir(parents=True)
    state = build_detector(cfg.model, random=True).state_dict()
    torch.save({'state_dict': state}, start / 'last.pth')
    (start / 'result.json').write_text('{"checkpoint": "last.pth"}')
    folder = here.describe(job)
    train(cfg, job.content, folder, [start])
    after = torch.load(folder / 'last.pth', weights_only=True)['state_dict']
    weights = [name for name in state if name.endswith('conv.weight')]
    assert weights
    for name in weights:
        # The schedule ends at a learning rate of 1e-5.
        torch.testing.assert_close(after[name], state[name], rtol=0, atol=1e-4)
