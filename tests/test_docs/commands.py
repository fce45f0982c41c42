"""The commands in the pages: shell blocks, and what stands in a sentence as code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    if '_build' not in path.parts
)
_BLOCK = re.compile(r'^```bash\n(.*?)^```', re.S | re.M)
_TOOL = re.compile(r'(?<![\w/])tools/\w+\.(?:py|sh)')


def blocks(text: str) -> list[str]:
    """The shell blocks of a page."""
    return _BLOCK.findall(text)


def lines(block: str) -> list[str]:
    """Commands of a block, continued lines joined, without comments."""
    joined = re.sub(r'\s*\\\n\s*', ' ', block)
    found = (re.sub(r'(^|\s)#.*', '', line).strip() for line in joined.splitlines())
    return [line for line in found if line]


def tool_calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """Tools of this repository that a page calls, each with the words behind it."""
    commands = [line for block in blocks(text) for line in lines(block)]
    prose = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    commands += [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose)]
    for command in commands:
        found = _TOOL.search(command)
        if found is None:
            continue
        rest = re.split(r'[;|&>]', command[found.end() :])[0]
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe in a sentence
            words = rest.split()
        yield found[0], words
