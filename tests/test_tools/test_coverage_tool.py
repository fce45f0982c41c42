"""tools/coverage.py as a user calls it: what it writes, what it returns, what it refuses."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest

from mmclipq.evaluation import coverage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the tool in this process; returns what it exits with, 0 if it just ends."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> int | str:
        monkeypatch.setattr(sys, 'argv', ['coverage.py', *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools' / 'coverage.py'), run_name='__main__')
        except SystemExit as ended:
            return ended.code
        return 0

    return call


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['absent.py'], ['absent.py: found no file']),
        (['--resume'], ['found --resume alone', 'wanted --json']),
        (['--quick', 'my.py'], ['found --quick with configs']),
        (['--size', '0'], ['--size: found 0', 'above zero']),
        (['--gigabytes', '-1'], ['--gigabytes: found -1.0', 'above zero']),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(run, arguments, words):
    sentence = run(*arguments)
    assert sentence.startswith('error: ')
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ('failures', 'status'),
    [({}, 0), ({'stock predict': 'no loss_cls'}, 0), ({'convert': 'found a step'}, 1)],
    ids=['passed', 'excused', 'failed'],
)
def test_status_table_and_page(run, monkeypatch, capsys, tmp_path, failures, status):
    def try_one(config, settings):
        assert settings.size == 96
        return coverage.Outcome(config, failures=dict(failures))

    monkeypatch.setattr('mmclipq.evaluation.coverage.run.try_one', try_one)
    arguments = ['--size', '96', '--json', 'new/all.json', '--out', 'docs/page.md']
    name = 'retinanet_r18_fpn_1x_coco.py'
    assert run(name, *arguments) == status
    printed = capsys.readouterr().out
    assert '| retinanet_r18_fpn_1x_coco |' in printed
    assert all(reason in printed for reason in failures.values())
    assert list(json.loads((tmp_path / 'new' / 'all.json').read_text())['outcomes']) == [name]
    page = (tmp_path / 'docs' / 'page.md').read_text()
    assert f'`python tools/coverage.py {name} --size 96 --json new/all.json --out' in page


@pytest.mark.parametrize(('flags', 'count'), [([], 72), (['--quick'], len(coverage.QUICK))])
def test_default_is_one_of_each_family(run, monkeypatch, flags, count):
    tried = []

    def try_one(config, settings):
        tried.append(config)
        return coverage.Outcome(config)

    monkeypatch.setattr('mmclipq.evaluation.coverage.run.try_one', try_one)
    assert run(*flags) == 0
    assert len(tried) == count
    assert all(Path(path).is_file() for path in tried)


def test_the_tool_does_not_pass_for_the_package_of_its_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.delitem(sys.modules, 'coverage', raising=False)
    with pytest.raises(ImportError, match='which is no module'):
        importlib.import_module('coverage')
