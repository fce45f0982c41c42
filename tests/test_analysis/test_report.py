"""The whole analysis with a planted fault, and the page that tells of it."""

import dataclasses
import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmclipq.analysis.page import words, write
from mmclipq.analysis.page.write import write_report
from mmclipq.analysis.run import Options, analyze, notes
from mmclipq.apis.int8_file import load_parts
from mmclipq.errors import ClipQError
from mmclipq.evaluation.interval import Difference
from mmclipq.graph.types import TensorType

MOST_BYTES = 1 << 20


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or '' for key, value in attrs}))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope='session')
def page(report) -> Page:
    return Page((report / 'index.html').read_text())


def test_the_planted_fault_is_on_top(analysed, faulty, page, report):
    top = analysed.layers[0]
    assert top.name == faulty
    assert top.ap.verdict == 'worse'
    assert top.clipped_inputs > 0.1
    assert [layer.name for layer in analysed.suspects][0] == faulty
    text = ''.join(page.words)
    assert text.index(faulty) < min(text.index(n) for n in analysed.order if n != faulty)
    assert '% of its inputs are clipped' in text
    figures = json.loads((report / 'report.json').read_text())
    assert figures['layers'][0]['name'] == faulty
    assert figures['layers'][0]['reads'] == [str(top.reads[0])]


def test_every_layer_is_in_the_tables(analysed, learnt):
    assert sorted(layer.name for layer in analysed.layers) == sorted(analysed.order)
    for layer in analysed.layers:
        weight = learnt.get_submodule(layer.name).weight
        bias = learnt.get_submodule(layer.name).bias
        values = weight.numel() + (0 if bias is None else bias.numel())
        assert layer.cost.float_bytes == 4 * values
        # A byte for each code; exponent, multiplier and bias for each channel.
        assert layer.cost.int8_bytes == weight.numel() + 12 * weight.shape[0]
        assert layer.cost.float_ms > 0
        assert layer.cost.int8_ms > 0
    assert analysed.weights.count == sum(
        learnt.get_submodule(name).weight.numel() for name in analysed.order
    )


def test_ap_is_that_of_both_detectors(analysed, images, learnt):
    from mmclipq.evaluation.interval import average_precision

    matches = images.match(images.detect(learnt).detections)
    assert analysed.differences[0].first == average_precision(matches)['AP']
    assert analysed.differences[0].second < analysed.differences[0].first
    assert analysed.totals['objects'] == sum(len(images.objects(i)) for i in images.ids)
    assert analysed.totals['lost'] >= len(analysed.lost[0].lost) > 0


def test_the_page_needs_nothing_else(page, report):
    text = (report / 'index.html').read_text()
    assert len(text) < MOST_BYTES
    for tag, attributes in page.tags:
        for name in ('src', 'srcset', 'href'):
            if name in attributes:
                assert attributes[name].startswith(('data:', '#')), (tag, attributes[name][:80])
        if tag == 'img':
            assert len(attributes['alt']) > 10
    assert {tag for tag, _ in page.tags}.isdisjoint({'script', 'iframe', 'object', 'embed'})
    assert 'url(' not in text
    assert '@import' not in text
    targets = {a['href'] for tag, a in page.tags if tag == 'a'}
    assert targets == {f'#{a["id"]}' for _, a in page.tags if a.get('id')}
    assert re.search(r'@media print', text)
    assert re.search(r'prefers-color-scheme: dark', text)


def test_pictures_lie_beside_the_page(report, analysed):
    names = sorted(path.name for path in report.iterdir())
    assert {'effects.png', 'signals.png', 'weights.png', 'classes.png', 'costs.png'} < set(names)
    shown = [f'lost-1-{title}.jpg' for title in ('objects', 'float', 'int8')]
    assert set(shown) < set(names)
    sizes = {Image.open(report / name).size for name in shown}
    assert len(sizes) == 1
    assert max(sizes.pop()) == 320


def test_a_class_called_like_a_tag_is_text(analysed, tmp_path, monkeypatch):
    monkeypatch.setattr(write, 'charts', lambda analysis: {})
    odd = '<script>alert(1)</script>'
    renamed = dataclasses.replace(
        analysed, title=odd, left={f'layer {odd}': f'because {odd}'}, classes=[odd] * 10
    )
    page = Page(write_report(renamed, tmp_path / 'report').read_text())
    assert 'script' not in {tag for tag, _ in page.tags}
    assert f'because {odd}' in ''.join(page.words)


def test_an_earlier_report_is_replaced_whole_or_not_at_all(analysed, tmp_path, monkeypatch):
    monkeypatch.setattr(write, 'charts', lambda analysis: {})  # which take their time
    out = tmp_path / 'deep' / 'report'
    write_report(analysed, out)
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, 'render', interrupted)
        for folder in (out, tmp_path / 'deep' / 'other'):
            with pytest.raises(KeyboardInterrupt):
                write_report(analysed, folder)
    assert [path.name for path in out.parent.iterdir()] == ['report']
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    write_report(dataclasses.replace(analysed, title='another'), out)
    assert 'another' in (out / 'index.html').read_text()
    assert [path.name for path in out.parent.iterdir()] == ['report']


def test_other_files_are_not_replaced(analysed, tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(ClipQError, match='found a folder with other files, wanted a new one'):
        write_report(analysed, tmp_path)
    with pytest.raises(ClipQError, match='thesis.tex: found a file, wanted the name of a folder'):
        write_report(analysed, tmp_path / 'thesis.tex')
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'


def run_tool(monkeypatch, *arguments: object) -> None:
    tools = Path(__file__).parents[2] / 'tools'
    monkeypatch.setattr(sys, 'argv', ['analyze', *map(str, arguments)])
    runpy.run_path(str(tools / 'analyze.py'), run_name='__main__')


@pytest.fixture
def config_file(small_cfg, tmp_path):
    small_cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


def test_the_tool_quantizes_by_itself(config_file, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, 'charts', lambda analysis: {})
    options = ['--sample', 1, '--suspects', 1, '--pictures', 1, '--images', 3]
    out = ['--out', tmp_path / 'report', '--calib-images', 2]
    run_tool(monkeypatch, config_file, checkpoint, *out, *options)
    printed = capsys.readouterr().out.split('\n')
    assert printed[-2] == f'report: {tmp_path}/report/index.html'
    assert printed[-6].startswith('AP ')
    figures = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert figures['images'] == 3
    assert figures['sample'] == 1
    assert len([layer for layer in figures['layers'] if layer['ap']]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.py', 'report']


def test_wrong_paths_are_one_sentence(config_file, checkpoint, tmp_path, monkeypatch):
    for arguments, said in (
        (['absent.py', checkpoint], r'absent\.py: found no file'),
        ([config_file, 'absent.pth'], r'absent\.pth: found no file'),
        ([config_file, checkpoint, 'absent.clipq'], r'absent\.clipq: found no file'),
        ([config_file, checkpoint, '--images', 1], '--images: found 1, wanted at least 2'),
        ([config_file, checkpoint, '--backend', 'none'], "found backend 'none'"),
    ):
        with pytest.raises(SystemExit, match=f'^error: {said}'):
            run_tool(monkeypatch, *arguments, '--out', tmp_path / 'report')
    with pytest.raises(SystemExit, match=r'^error: .*config\.py: found a file, wanted the name'):
        run_tool(monkeypatch, config_file, checkpoint, '--out', config_file)
    assert not (tmp_path / 'report').exists()


def test_an_interruption_leaves_nothing(config_file, checkpoint, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmclipq.analysis.run.agreement_lost', interrupted)
    options = ['--sample', 1, '--images', 2, '--calib-images', 1]
    with pytest.raises(SystemExit) as ended:
        run_tool(monkeypatch, config_file, checkpoint, '--out', tmp_path / 'report', *options)
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith('interrupted; nothing half-written was left\n')
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']


def test_images_without_objects_and_files_of_others_are_refused(
    small_cfg, checkpoint, analysed, tmp_path
):
    cfg = small_cfg.copy()
    truth = json.loads(Path(cfg.test_dataloader.dataset.data_root,
                            cfg.test_dataloader.dataset.ann_file).read_text())  # fmt: skip
    (tmp_path / 'none.json').write_text(json.dumps({**truth, 'annotations': []}))
    cfg.merge_from_dict({
        'test_dataloader.dataset.ann_file': str(tmp_path / 'none.json'),
        'test_evaluator.ann_file': str(tmp_path / 'none.json'),
    })  # fmt: skip
    with pytest.raises(ClipQError, match='found no object in 6 test images'):
        analyze(cfg, checkpoint)
    cfg = small_cfg.copy()
    cfg.merge_from_dict({'test_dataloader.dataset.ann_file': 'absent.json'})
    with pytest.raises(ClipQError, match=r'found no test images \(.*absent\.json'):
        analyze(cfg, checkpoint)
    wider = small_cfg.copy()
    wider.merge_from_dict({'model.bbox_head.num_classes': 3})
    other = tmp_path / 'other.pth'
    from mmclipq.apis import build_detector

    torch.save({'state_dict': build_detector(wider.model, random=True).state_dict()}, other)
    with pytest.raises(ClipQError, match=r'found the int8 layer bbox_head\.convs_pred'):
        analyze(wider, other, analysed.sources['int8 file'], Options(sample=1))


def test_words():
    assert words.signed(-0.0125) == '−0.013'
    assert words.signed(float('nan')) == '–'
    assert words.percent(0.00004) == '<0.01'
    assert words.percent(0.0) == '0'
    assert words.percent(0.5) == '50.0'
    assert words.decibels(float('inf')) == '∞'
    assert words.size(2048) == '2.0 KiB'
    worse = Difference('AP', 0.5, 0.4, -0.15, -0.05)
    assert words.verdict(worse) == 'int8 is worse by 0.100 AP (95 % interval −0.150 to −0.050).'
    same = Difference('AP', 0.5, 0.5, -0.1, 0.1)
    assert words.verdict(same).startswith('No difference that these images can show (95 %')
    assert words.grouped({'a': 'x', 'b': 'y', 'c': 'y'}) == [('y', 'b, c', 2), ('x', 'a', 1)]
    assert words.listed(map(str, range(10))) == '0, 1, 2, 3, 4, 5, 6, 7 and 2 more'
    assert str(TensorType(3, False, 16)) == 'uint8 2^3 offset 16'


def test_a_file_of_another_checkpoint_is_noted(analysed):
    assert not notes(analysed.layers)
    noisy = [dataclasses.replace(layer, weight_db=3.0) for layer in analysed.layers]
    (note,) = notes(noisy)
    assert "far from the checkpoint's, 3.0 dB" in note


def test_parts_of_the_file_are_what_was_planted(analysed, parts):
    planted = load_parts(analysed.sources['int8 file'])
    changed = [
        name for name, kind in planted.graph.tensors.items() if kind != parts.graph.tensors[name]
    ]
    assert changed == ['neck.detect2.conv1.conv']
