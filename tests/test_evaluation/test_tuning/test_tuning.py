"""Layers and ranges by detections: planted faults come first, interruptions leave no trace."""

import copy

import pytest
import torch

from mmclipq.apis import build_detector, load_int8, save_int8
from mmclipq.apis.calibration_data import config_batches, with_instances
from mmclipq.apis.quantize_model import CalibrationSession, calibrate
from mmclipq.calibration.options import CalibrationOptions
from mmclipq.errors import ClipQError
from mmclipq.evaluation.tuning import search as search_module
from mmclipq.evaluation.tuning.budget import int8_detector, within_budget
from mmclipq.evaluation.tuning.distance import distance, image_distance
from mmclipq.evaluation.tuning.held_out import HeldOut
from mmclipq.evaluation.tuning.run import export_tuned
from mmclipq.evaluation.tuning.search import search_ranges
from mmclipq.evaluation.tuning.sensitivity import layer_sensitivities
from mmclipq.evaluation.tuning.state import Progress
from mmclipq.graph.ir import TensorType
from mmclipq.lowering.part import Lowering

BROKEN, LAYERS = 'backbone.c', 8


def state_of(model):
    """Classes, modes and instance attributes of every module."""
    return [
        (type(m), m.training, sorted(k for k in vars(m) if not k.startswith('_')))
        for m in model.modules()
    ]


def break_input(session, path=BROKEN, octaves=-3):
    """Let a layer's input have a range that is off."""
    part = session.dense
    (unit,) = [unit for unit in part.plan.units if unit.path == path]
    kind = part.types[unit.operands[0]]
    part.types[unit.operands[0]] = TensorType(kind.exponent + octaves, kind.signed, kind.offset)


def test_a_layer_whose_range_is_off_by_three_comes_first(session, held_out):
    break_input(session)
    before = state_of(session.model)
    rows = layer_sensitivities(session, held_out)
    assert rows[0].layer == BROKEN
    assert rows[0].distance > 3 * rows[1].distance
    assert rows[0].ap_loss > 0.05
    assert [row.distance for row in rows] == sorted((r.distance for r in rows), reverse=True)
    assert len(rows) == LAYERS
    assert state_of(session.model) == before


def test_one_layer_is_as_far_off_as_without_what_is_kept(session, held_out):
    """The suffix that is computed again gives what a whole run gives."""
    rows = {row.layer: row.distance for row in layer_sensitivities(session, held_out, images=1)}
    simulation = session.dense.simulation()
    calls = {node for node, unit in simulation.layers.items() if unit.start.target == BROKEN}
    results = []
    for only in ((), calls):
        simulation.only = only
        with session.dense.executing(simulation):
            results.append(held_out.found(session.predict, images=1))
    assert rows[BROKEN] == pytest.approx(distance(results[1], results[0]), rel=1e-5)


def test_sensitivity_goes_on_where_it_was_interrupted(session, held_out, tmp_path, monkeypatch):
    before, wanted = state_of(session.model), layer_sensitivities(session, held_out)
    predict, calls = CalibrationSession.predict, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return predict(self, *args)

    monkeypatch.setattr(CalibrationSession, 'predict', interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer_sensitivities(session, held_out, Progress(tmp_path / 'p', 'm'))
    assert state_of(session.model) == before
    calls.clear()
    assert layer_sensitivities(session, held_out, Progress(tmp_path / 'p', 'm')) == wanted
    assert len(calls) == 2 * (1 + LAYERS)  # two of the four images


def test_the_broken_layer_alone_stays_in_float(session, held_out, monkeypatch):
    choose = CalibrationSession.choose

    def broken(self, options, left=None):
        choose(self, options, left)
        if BROKEN not in (left or {}):
            break_input(self)

    monkeypatch.setattr(CalibrationSession, 'choose', broken)
    before = state_of(session.model)
    whole = within_budget(session, CalibrationOptions(), held_out, 100)
    assert whole.costs == []
    lost = 100 * (whole.difference.first - whole.all_int8)
    assert whole.difference.first == 1
    budget = within_budget(session, CalibrationOptions(), held_out, lost / 2)
    assert [cost.layer for cost in budget.costs] == [BROKEN]
    assert budget.costs[0].bytes == 3 * session.model.get_submodule(BROKEN).weight.numel()
    assert -100 * budget.difference.difference <= lost / 2
    assert budget.quantized.left[BROKEN] == 'kept in float by --max-drop'
    assert budget.layers == LAYERS
    assert f'| {BROKEN} |' in str(budget)
    assert state_of(session.model) == before


def test_what_is_measured_is_what_the_file_does(cfg, session, held_out, tmp_path):
    """A layer that stays in float does not clip, whatever the ranges that it was trained with."""
    layer = session.model.get_submodule(BROKEN)
    layer.input_exponent = -3
    quantized = session.finish(CalibrationOptions(), {BROKEN: 'because'})
    memory = int8_detector(session, quantized, [BROKEN])
    assert layer.input_exponent == -3
    save_int8(tmp_path / 'a.clipq', session.model, quantized, cfg, {})
    loaded = load_int8(tmp_path / 'a.clipq')
    assert type(loaded.get_submodule(BROKEN)) is torch.nn.Conv2d
    for ours, theirs in zip(*(held_out.found(d.predict) for d in (memory, loaded)), strict=True):
        assert len(ours.scores) > 0
        assert all((a == b).all() for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_a_budget_that_nothing_keeps(session, held_out, monkeypatch):
    monkeypatch.setattr(type(held_out), 'ap', lambda self, found: -float(found[0].scores.sum()))
    with pytest.raises(ClipQError, match='--max-drop: found a loss of .* even with all 8 layers'):
        within_budget(session, CalibrationOptions(), held_out, -1e9)


def test_images_without_objects(session, held_out):
    held_out.infos = None
    with pytest.raises(ClipQError, match='--max-drop: found held-out images without objects'):
        within_budget(session, CalibrationOptions(), held_out, 1)


@pytest.fixture
def one_image(session):
    session.held._kept = session.held._kept[:1]
    return session


def test_search_mends_a_range_goes_on_and_leaves_no_trace(one_image, tmp_path, monkeypatch):
    session, use = one_image, Lowering.use
    (unit,) = [unit for unit in session.dense.plan.units if unit.path == BROKEN]
    off = next(g for g in session.dense.groups() if unit.operands[0] in g.units)

    def broken(self, errors):
        use(self, errors)
        range_ = self.chosen[off.key]
        self.chosen[off.key] = range_._replace(exponent=range_.exponent - 3)

    monkeypatch.setattr(Lowering, 'use', broken)
    before, options = state_of(session.model), CalibrationOptions()
    ways, results = [], []
    for again in (False, True, False):
        stop = ways[0] * 2 // 3 if again else None
        progress = Progress(tmp_path / 'p', 'm') if ways else None
        trials = []

        def counted(found, wanted, trials=trials, stop=stop):
            trials.append(1)
            if len(trials) == stop:
                raise KeyboardInterrupt
            return image_distance(found, wanted)

        monkeypatch.setattr(search_module, 'image_distance', counted)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                search_ranges(session, options, progress)
        else:
            results.append(search_ranges(session, options, progress))
        ways.append(len(trials))
        assert state_of(session.model) == before
    assert results[0] == results[1]
    assert ways[2] < ways[0] * 2 // 3
    assert f'dense: {off.name}' in results[0].changed
    assert results[0].after < 0.7 * results[0].before
    chosen = session.dense.chosen[off.key]
    assert chosen == results[0].changed[f'dense: {off.name}']


def test_export_writes_reports_and_resumes(cfg, detector, tmp_path, monkeypatch):
    from mmclipq.evaluation.tuning import run

    monkeypatch.setattr(run, 'search_ranges', lambda *args: 'searched')
    torch.save({'state_dict': copy.deepcopy(detector.state_dict())}, tmp_path / 'float.pth')
    out = tmp_path / 'a.clipq'
    options = {'max_drop': 100, 'calib_images': 3, 'held_images': 2}
    reports = export_tuned(cfg, tmp_path / 'float.pth', out, search=True, **options)
    assert next(reports) == 'searched'
    assert '2 held-out images: AP of float' in str(next(reports))
    assert out.with_name('a.clipq.progress').is_file()
    reports.close()  # as an interruption does
    *_, going_on, _, budget, summary = [
        '',
        *export_tuned(cfg, tmp_path / 'float.pth', out, search=True, **options),
    ]
    assert 'going on with 1 results' in going_on
    assert budget.costs == []
    assert summary.quantized == LAYERS
    assert load_int8(out).int8_backend.graph.products()
    assert not out.with_name('a.clipq.progress').exists()


def test_nothing_is_held_out_where_all_images_calibrate(cfg, detector, tmp_path):
    torch.save({'state_dict': detector.state_dict()}, tmp_path / 'float.pth')
    reports = export_tuned(cfg, tmp_path / 'float.pth', tmp_path / 'a.clipq', max_drop=1.0)
    with pytest.raises(ClipQError, match='--max-drop: found 0 images beside those that calibrate'):
        next(reports)


@pytest.mark.slow
def test_the_boxes_of_two_stages_are_tuned_too(load_config):
    """Ranges behind RoIAlign are searched and its layers measured."""
    cfg = load_config('quickstart/faster_rcnn_mobilenetv2_digits.py')
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = build_detector(cfg.model, random=True)
    model.init_weights()
    session = calibrate(model, config_batches(cfg, 1))
    result = search_ranges(session, CalibrationOptions())
    assert result.after <= result.before
    names = [group.key for group in session.parts['boxes 0'].groups()]
    assert names
    assert result.tensors == len(names) + len(session.dense.groups())
    session.choose(CalibrationOptions())
    held_out = HeldOut(model, config_batches(with_instances(cfg), 1, held=1))
    layers = {row.layer: row.distance for row in layer_sensitivities(session, held_out)}
    boxes = [name for name in layers if name.startswith('roi_head')]
    assert len(boxes) == 4
    assert all(layers[name] > 0 for name in boxes)
