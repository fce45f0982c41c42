"""Pages: the site builds, links lead somewhere, commands have the flags that they are given."""

import contextlib
import io
import re
import runpy
import subprocess
import sys

import pytest
import torch
from commands import PAGES, ROOT, lines, tool_calls

CALLS = sorted({(tool, tuple(words)) for page in PAGES for tool, words in
                tool_calls(page.read_text())})  # fmt: skip


@pytest.fixture(scope='module')
def conf():
    return runpy.run_path(str(ROOT / 'docs' / 'conf.py')) if _sphinx() else None


def _sphinx() -> bool:
    try:
        import furo
        import myst_parser
        import sphinx
    except ImportError:
        return False
    return all((furo, myst_parser, sphinx))


needs_sphinx = pytest.mark.skipif(
    not _sphinx(), reason='no Sphinx here; pip install -r requirements/docs.txt'
)


def build(docs, out):
    options = ['-q', '-W', '--keep-going', '-E']
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'sphinx', *options, str(docs), str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@needs_sphinx
def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path):
    done = build(ROOT / 'docs', tmp_path)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / 'docs').rglob('*.md'):
        if '_build' not in page.parts:
            assert (tmp_path / page.relative_to(ROOT / 'docs')).with_suffix('.html').is_file()
    api = (tmp_path / 'api.html').read_text()
    for name in ('Int8Inferencer', 'quantize', 'load_int8', 'CpuRunner', 'SVDBBoxHead'):
        assert f'<span class="pre">{name}</span>' in api
    # The text of the root's page, and links of it, are there.
    assert 'href="design.html' in (tmp_path / 'contributing.html').read_text()


@needs_sphinx
def test_links_to_files_of_the_repository_are_found_or_named(conf):
    rewrite = conf['rewrite_links']
    docs = ROOT / 'docs'
    text = 'see [one](../SECURITY.md#x), [two](../setup.py), `[a](b)`, [three](../absent.py)'
    found, broken = rewrite(text, docs, docs / 'start.md')
    assert found.startswith('see [one](security.md#x), two, `[a](b)`, ')
    assert broken == ['../absent.py']
    found, broken = rewrite('[d](docs/cuda.md)', ROOT, docs / 'contributing.md')
    assert (found, broken) == ('[d](cuda.md)', [])


def headings(text: str) -> set[str]:
    """Anchors that a page's headings have on the repository's host and on the site."""
    found = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M), re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in found}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    text = re.sub(r'^```.*?^```|`[^`\n]*`', '', page.read_text(), flags=re.S | re.M)
    for link in re.findall(r'\]\(([^()\s]+)\)', text):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = page if not path else page.parent / path
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target.read_text()), link


def test_commands_are_taken_from_blocks_and_sentences():
    text = 'Say `python tools/a.py X\n--one`.\n```bash\nbash tools/b.sh --two \\\n  3 # --no\n```\n'
    assert sorted(tool_calls(text)) == [
        ('tools/a.py', ['X', '--one']),
        ('tools/b.sh', ['--two', '3']),
    ]
    assert lines('# a\nb  # c\n\nd \\\n e\n') == ['b', 'd e']
    assert len(CALLS) > 50


@pytest.fixture(scope='module')
def flags():
    """Flags of each tool, as its ``--help`` has them."""
    known: dict[str, set[str]] = {}

    def of(tool: str) -> set[str]:
        if tool not in known:
            if tool.endswith('.sh'):
                said = (ROOT / tool).read_text()
            else:
                said = helped(tool)
            known[tool] = set(re.findall(r'--[a-z][a-z0-9-]*', said))
        return known[tool]

    return of


def helped(tool: str) -> str:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, 'argv', [tool, '--help'])
        patch.setenv('LOCAL_RANK', '0')
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / tool), run_name='__main__')
    torch.set_flush_denormal(False)  # as it was before tools/train.py
    return said.getvalue()


@pytest.mark.parametrize('tool', sorted({tool for tool, _ in CALLS}))
def test_every_flag_in_the_pages_is_in_the_help_of_its_tool(tool, flags):
    assert (ROOT / tool).is_file()
    passed_on = {'tools/run_tests.sh': ['--line', '-m', '-k']}.get(tool, [])
    given = {word.split('=')[0] for name, words in CALLS if name == tool for word in words
             if word.startswith('--') and len(word) > 2}  # fmt: skip
    assert given - flags(tool) - set(passed_on) == set()


def test_a_flag_that_is_not_there_is_found(flags):
    assert '--calib-images' in flags('tools/quantize.py')
    assert '--auto-scale-lr' in flags('tools/train.py')  # mmdet's own
    assert '--calibration-images' not in flags('tools/quantize.py')
