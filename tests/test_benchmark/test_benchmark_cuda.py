"""The benchmark's GPU rows with a recorder, events and backends that need no GPU."""

import time
from dataclasses import replace

import pytest
import torch
from whole_detector import leaves

from mmclipq.apis import build_detector, quantize
from mmclipq.benchmark import cuda_peers
from mmclipq.benchmark import run as benchmark_run
from mmclipq.benchmark.cuda_peers import CUDA_PEERS, EventTimer, int_mm_run
from mmclipq.benchmark.parts import FloatWay, Int8Way, Setting
from mmclipq.benchmark.peers import Subject, save_ours, save_state
from mmclipq.benchmark.run import Comparison, count_operations, find_platform, save_files
from mmclipq.detector import plain_samples
from mmclipq.errors import ClipQError

HALF = FloatWay(torch.float16)


def record(step):
    """As a CUDA graph: results lie in the same tensors after each replay."""
    results = step()

    def replay():
        for own, new in zip(leaves(results), leaves(step()), strict=True):
            own.copy_(new)

    return replay, results


@pytest.fixture(scope='module')
def two_stage(tmp_path_factory):
    """A small two-stage detector, its setting and a folder for files."""
    from mmengine.config import Config
    from mmengine.hub import get_config

    cfg = Config({'model': get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model})
    cfg.model.backbone.update(depth=18)
    cfg.model.neck.update(in_channels=[64, 128, 256, 512])
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    cfg.model.roi_head.bbox_head.update(fc_out_channels=64, num_classes=3)
    cfg.test_dataloader = {'dataset': {'pipeline': []}}
    torch.manual_seed(0)
    stock, model = (build_detector(cfg.model, random=True).eval() for _ in range(2))
    model.load_state_dict(stock.state_dict())
    image = torch.randn(1, 3, 64, 64)
    subject = Subject(cfg, stock, model, quantize(model, [image]), [image])
    folder = tmp_path_factory.mktemp('files')
    return subject, Setting(cfg, image, 1), folder


def test_regions_reach_every_level(two_stage):
    _, setting, _ = two_stage
    setting = replace(setting, images=torch.zeros(2, 3, 800, 1216))
    rois = setting.regions()
    assert rois.shape == (60, 5)
    assert rois[:, 0].int().bincount().tolist() == [30, 30]
    assert (rois[:, 1:3] >= 0).all()
    assert (rois[:, 3] <= 1216).all()
    assert (rois[:, 4] <= 800).all()
    scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    assert set((scale / 56).log2().floor().clamp(0, 3).int().tolist()) == {0, 1, 2, 3}
    assert torch.equal(rois, setting.regions())


@pytest.mark.parametrize(
    'way',
    [HALF, FloatWay(record=record), replace(HALF, record=record)],
    ids=['float16', 'recorded', 'recorded float16'],
)
@torch.no_grad()
def test_every_way_computes_the_same(two_stage, way):
    subject, setting, folder = two_stage
    path = save_state(subject, folder)
    for part in ('dense', 'regions'):
        wanted = leaves(getattr(FloatWay(), part)(setting, path)())
        run = getattr(way, part)(setting, path)
        for found, value in zip(leaves(run()), wanted, strict=True):
            assert found.dtype == way.dtype
            assert (found - value).abs().max() <= 0.02 * value.abs().max()
    wanted = FloatWay().whole(setting, path).predict(setting.images, plain_samples(setting.images))
    found = way.whole(setting, path).predict(setting.images, plain_samples(setting.images))
    found, wanted = found[0].pred_instances, wanted[0].pred_instances
    assert found.bboxes.dtype == found.scores.dtype == torch.float32
    assert len(wanted) == 20
    assert torch.allclose(found.scores, wanted.scores, atol=0.02)


@torch.no_grad()
def test_a_recording_reads_new_images(two_stage):
    subject, setting, folder = two_stage
    path = save_state(subject, folder)
    module = FloatWay().stock(setting, path).backbone.conv1.half()
    run = replace(HALF, record=record).executed(module, setting.images)
    other = torch.randn_like(setting.images)
    assert torch.equal(run(other).clone(), module(HALF.converted(other)))
    assert torch.equal(run(setting.images), module(HALF.converted(setting.images)))


@torch.no_grad()
def test_int8_runs_all_parts(two_stage):
    subject, setting, folder = two_stage
    path, way = save_ours(subject, folder), Int8Way('reference')
    (scores, deltas), *others = way.regions(setting, path)()
    assert not others
    assert (scores.shape, deltas.shape) == ((30, 4), (30, 12))
    assert set(way.dense(setting, path)()) == {'features', 'head'}
    assert way.whole(setting, path).int8_backend.name == 'reference'


class Event:
    """Time goes on by one millisecond for each event made."""

    made = 0

    def record(self):
        Event.made += 1
        self.at = Event.made

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


def test_events_stand_around_all_repeats():
    calls = []
    assert EventTimer(4, Event)(lambda: calls.append(0)) == 0.25
    assert len(calls) == 4


def test_peak_counts_its_operations():
    assert int_mm_run('cpu', 32)() == 2 * 32**3


def fake_platform(**peers):
    """A CPU that is timed and recorded as a GPU is."""
    return benchmark_run.Platform(
        torch.device('cpu'),
        peers,
        (1,),
        EventTimer(1, Event),
        time.perf_counter,
        lambda: int_mm_run('cpu', 32),
        'a product',
        {'gpu': 'no GPU'},
    )


def test_rows_that_fail_are_told_and_left_out(two_stage, capsys):
    subject, setting, folder = two_stage

    def broken(step):
        raise RuntimeError('operation not permitted when stream is capturing\nmore')

    platform = fake_platform(
        **{
            'torch float32': CUDA_PEERS['torch float32'],
            'broken': cuda_peers._float_peer(FloatWay(record=broken)),
            'absent': cuda_peers._int8_peer('abacus'),
            'mmclipq': cuda_peers._int8_peer('int8'),
        }
    )
    way = Int8Way()
    ours = replace(platform.peers['mmclipq'], load=way.dense, regions=way.regions, whole=way.whole)
    platform.peers['mmclipq'] = replace(ours, obstacle=str)
    files = save_files(platform, list(platform.peers), subject, folder)
    assert list(files) == ['torch float32', 'broken', 'mmclipq']
    work = count_operations(subject, setting)
    assert min(work) > 0
    comparison = Comparison(platform, files, 1, work)
    comparison.run(setting)
    out = capsys.readouterr().out
    assert "absent: left out, there is no backend 'abacus'" in out
    reason = 'RuntimeError: operation not permitted when stream is capturing'
    assert f'broken: left out of dense part, 1 thread, batch 1, {reason}\n' in out
    figures = comparison.figures
    assert [lost['row'] for lost in figures['left_out']] == ['broken'] * 3
    assert figures['machine']['gpu'] == 'no GPU'
    for part in ('dense', 'regions', 'whole'):
        (row,) = figures[part]
        assert [r['name'] for r in row['rows']] == ['torch float32', 'mmclipq']
        assert all(r['median'] == 1 for r in row['rows'])
    speed = figures['regions'][0]['int8_peak_giga_operations_per_second']
    assert speed == pytest.approx(2 * 32**3 / 1e9 / 1e-3)
    assert figures['whole'][0]['profile']
    assert [title.split(',')[0] for title in comparison.panels] == [
        'dense part',
        'RoIAlign and box heads',
        'image tensor to boxes',
    ]


def test_backends_say_why_they_cannot_run():
    assert 'build' in CUDA_PEERS['mmclipq cuda'].missing or not CUDA_PEERS['mmclipq cuda'].missing


@pytest.mark.skipif(torch.cuda.is_available(), reason='found a GPU')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1'])
def test_no_gpu_is_one_sentence(device):
    wanted = rf'^--device {device}: found 0 GPUs .*, wanted this one; use --device cpu, '
    with pytest.raises(ClipQError, match=wanted):
        find_platform(device)


@pytest.mark.parametrize('device', ['gpu', 'cuda:', 'cuda:x', ''])
def test_unknown_devices_are_refused(device):
    with pytest.raises(ClipQError, match=f'--device {device}: found no such device, wanted cpu'):
        find_platform(device)


def test_other_devices_have_no_rows():
    with pytest.raises(ClipQError, match='--device meta: found no CPU or GPU of CUDA, wanted'):
        find_platform('meta')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='found no GPU')
@torch.no_grad()
def test_a_cuda_graph_is_recorded(two_stage):
    subject, setting, folder = two_stage
    setting = replace(setting, images=setting.images.cuda())
    path = save_state(subject, folder)
    wanted = leaves(FloatWay().dense(setting, path)())
    found = leaves(FloatWay(torch.float16, record=cuda_peers.record).dense(setting, path)())
    for own, value in zip(found, wanted, strict=True):
        assert (own - value).abs().max() <= 0.02 * value.abs().max()
