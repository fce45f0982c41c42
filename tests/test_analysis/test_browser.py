"""The page in a real browser: nothing sticks out, every picture is there, light, dark, on paper."""

import html
import re
import shutil
import subprocess

import pytest
from PIL import Image

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason='found no chromium (apt-get install chromium)'
)
PROBE = """<script>addEventListener('load', () => {
  const seen = document.documentElement;
  parent.document.documentElement.dataset.probed = [
    innerWidth, seen.scrollWidth, getComputedStyle(document.body).backgroundColor,
    [...document.images].filter(image => image.complete && image.naturalWidth > 0).length,
    performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length,
  ].join(' | ');
});</script></body>"""
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope='module')
def browse(tmp_path_factory):
    """Runs the browser and returns what it prints."""
    profile = tmp_path_factory.mktemp('profile')

    def run(*arguments: object) -> str:
        command = [
            BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
            '--hide-scrollbars', f'--user-data-dir={profile}', *map(str, arguments),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope='module')
def probed(browse, report, tmp_path_factory):
    """What the browser makes of the page in a frame of some width: its windows are wider than
    phones."""
    text = html.escape((report / 'index.html').read_text().replace('</body>', PROBE))
    path = tmp_path_factory.mktemp('probed') / 'index.html'

    def probe(width: int, *options: str) -> list[str]:
        frame = f'<iframe srcdoc="{text}" width="{width}" height="900" style="border: 0"></iframe>'
        path.write_text(f'<!DOCTYPE html><meta charset="utf-8">{frame}')
        found = browse(*options, '--virtual-time-budget=20000', '--dump-dom', path.as_uri())
        return re.search(r'data-probed="([^"]*)"', found)[1].split(' | ')

    return probe


@pytest.mark.parametrize('width', [PHONE, DESKTOP])
def test_nothing_sticks_out_and_every_picture_is_there(probed, report, width):
    inner, whole, paper, pictures, requests = probed(width)
    assert inner == whole == str(width)
    assert paper == 'rgb(255, 255, 255)'
    assert int(pictures) == (report / 'index.html').read_text().count('<img ') >= 8
    assert requests == '0'


def test_a_dark_page_is_dark(probed):
    assert probed(PHONE, '--force-dark-mode')[2] == 'rgb(20, 24, 29)'


@pytest.mark.parametrize('width', [PHONE, DESKTOP])
def test_a_screenshot_is_no_blank(browse, report, tmp_path, width):
    path = tmp_path / 'page.png'
    size = f'--window-size={width},2000'
    browse(size, f'--screenshot={path}', (report / 'index.html').as_uri())
    with Image.open(path) as image:
        assert image.size == (width, 2000)
        colours = image.convert('RGB').getcolors(1 << 24)
    assert len(colours) > 50
    assert 0.5 < max(count for count, _ in colours) / (width * 2000) < 0.98


def test_on_paper(browse, report, tmp_path):
    path = tmp_path / 'page.pdf'
    browse('--no-pdf-header-footer', f'--print-to-pdf={path}', (report / 'index.html').as_uri())
    pages = re.findall(rb'/Type ?/Page\b', path.read_bytes())
    assert 4 <= len(pages) <= 20
    if shutil.which('pdftotext') is None:
        pytest.skip('the pages are there; found no pdftotext (poppler-utils) to read them with')
    command = ['pdftotext', '-layout', str(path), '-']
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The table's last columns are cut off where a page is too narrow.
    for wanted in ('Where accuracy goes', 'depthwise conv', 'all of these', 'How it was measured'):
        assert wanted in text
