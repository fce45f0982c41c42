"""Sphinx builds the site from these pages, the texts of the repository's root, and docstrings.

Sphinx with MyST, as mmdet's own documentation: the pages stay plain Markdown that the repository's
host shows, too, and the API reference is written from the docstrings alone.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = 'mmclipq'
copyright = 'the authors of mmclipq, Apache-2.0'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
source_suffix = {'.md': 'markdown'}
exclude_patterns = ['_build']
myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3
# Pages in the contents of index.md that a checkout may not have yet.
MAY_BE_ABSENT = ('paper', 'storage')

autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
autodoc_class_signature = 'mixed'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = 'mmclipq'
html_static_path = ['static']
html_css_files = ['tables.css']
html_show_sphinx = False

# Where the repository's files can be read; without it they are named and not linked.
SOURCE_URL = os.environ.get('CLIPQ_SOURCE_URL', '').rstrip('/')

_WHOLE = re.compile(r'<!-- the text of (\S+) -->\s*')
_LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)')
_log = logging.getLogger(__name__)


def _target(link: str, folder: Path) -> tuple[Path, str]:
    """The file that a relative link means, and its anchor."""
    path, _, anchor = link.partition('#')
    return (folder / path).resolve(), anchor


def _page(path: Path) -> Path | None:
    """The page of the site that has a file's text."""
    if path.is_relative_to(DOCS):
        return path
    pages = {ROOT / f'{name.upper()}.md': DOCS / f'{name}.md' for name in
             ('contributing', 'security', 'changelog')}  # fmt: skip
    return pages.get(path)


def rewrite_links(text: str, folder: Path, page: Path) -> tuple[str, list[str]]:
    """A page's text whose links to files of the repository work on the site.

    Args:
        text: Markdown.
        folder: Folder that its relative links start from.
        page: File of the page that shows it.

    Returns:
        The text, and the links that lead nowhere.
    """
    broken = []

    def replace(match: re.Match[str]) -> str:
        picture, words, link = match.groups()
        if re.match(r'[a-z]+:|#', link):
            return match[0]
        path, anchor = _target(link, folder)
        if not path.exists():
            broken.append(link)
            return match[0]
        shown = _page(path)
        if shown is not None:
            place = os.path.relpath(shown, page.parent)
            return f'{picture}[{words}]({place}{"#" + anchor if anchor else ""})'
        if SOURCE_URL:
            return f'[{words}]({SOURCE_URL}/{path.relative_to(ROOT)})'
        return words

    # Code is no text with links.
    parts = re.split(r'(^```.*?^```|`[^`\n]*`)', text, flags=re.S | re.M)
    return ''.join(p if p.startswith('`') else _LINK.sub(replace, p) for p in parts), broken


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    page = DOCS / f'{name}.md'
    folder = page.parent
    if name == 'index':
        absent = [p for p in MAY_BE_ABSENT if not (DOCS / f'{p}.md').is_file()]
        lines = source[0].splitlines(keepends=True)
        source[0] = ''.join(line for line in lines if line.strip() not in absent)
    if whole := _WHOLE.fullmatch(source[0]):
        file = (folder / whole[1]).resolve()
        source[0], folder = file.read_text(), file.parent
    source[0], broken = rewrite_links(source[0], folder, page)
    for link in broken:
        _log.warning('found no file for the link %s', link, location=name)


def setup(app: Sphinx) -> None:
    app.connect('source-read', _read)
