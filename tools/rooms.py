#!/usr/bin/env python
"""Print the rooms of mmclipq, the floors they lie on and what they import, read from the code.

A room is a folder or a file directly inside the package, or the folder of tools. Its floor is one
above the highest that it imports. The test of the imports' direction uses the same reader and the
table of layers below.
"""

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from _tool import run

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TOOLS = 'mmclipq', 'tools'

LAYERS = (
    ('errors', 'version', 'registry', '_compat'),
    (PACKAGE,),  # its __init__.py, whose public names are looked up when they are used
    ('attention', 'fixed_point'),
    ('graph', 'calibration'),
    ('ops', 'exporters', 'layers'),
    ('backends', 'lowering', 'models', 'pipeline', 'prepare'),
    ('detector',),
    ('apis',),
    ('engine', 'evaluation', 'benchmark'),
    ('analysis', 'experiments'),
    (TOOLS,),
)
"""Rooms, bottom up. One imports from the layers before its own: none from its own row."""


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        file: Path of the file that imports, relative to the checkout.
        line: Where.
        source, target: Dotted names of the modules.
    """

    file: str
    line: int
    source: str
    target: str

    def __str__(self) -> str:
        return f'{self.file}:{self.line}: {self.source} imports {self.target}'


def read_checkout(root: Path = ROOT) -> dict[str, str]:
    """Text of each Python file of the package and of the tools, by its path."""
    files = [path for name in (PACKAGE, TOOLS) for path in sorted((root / name).rglob('*.py'))]
    paths = {path: path.relative_to(root).as_posix() for path in files}
    return {name: path.read_text() for path, name in paths.items() if '/.mim/' not in name}


def read_revision(revision: str, root: Path = ROOT) -> dict[str, str]:
    """The same of a revision that Git knows."""
    command = ['git', '-C', str(root), 'archive', revision, PACKAGE, TOOLS]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        sys.exit(f'error: --revision {revision}: {done.stderr.decode().strip()}')
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        return {n: f.read().decode() for n, f in files.items() if f and n.endswith('.py')}


def module_name(file: str) -> str:
    """Dotted name of the module in the file ``file``."""
    return file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def imports(sources: Mapping[str, str]) -> Iterator[Import]:
    """Every import of one of the ``sources`` by another, wherever in the file it stands."""
    modules = {module_name(file) for file in sources}
    for file, text in sources.items():
        source = module_name(file)
        package = source if file.endswith('/__init__.py') else source.rpartition('.')[0]
        for node in ast.walk(ast.parse(text, file)):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for target in _targets(node, package, modules):
                if target != source:
                    yield Import(file, node.lineno, source, target)


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: set[str]) -> list[str]:
    """Those of the ``modules`` that a statement of a module in ``package`` imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in modules]
    base = node.module or ''
    if node.level:
        above = package.split('.')[: len(package.split('.')) - node.level + 1]
        base = '.'.join([*above, base]) if base else '.'.join(above)
    if base not in modules:
        return []
    names = [f'{base}.{alias.name}' for alias in node.names]
    return [name if name in modules else base for name in names]


def room_of(module: str) -> str:
    """The room that a module lies in."""
    top, *rest = module.split('.')
    return rest[0] if rest and top == PACKAGE else top


def arrows(found: Iterator[Import]) -> dict[str, set[str]]:
    """The rooms that each room imports."""
    rooms: dict[str, set[str]] = {}
    for item in found:
        source, target = room_of(item.source), room_of(item.target)
        rooms.setdefault(target, set())
        if source != target:
            rooms.setdefault(source, set()).add(target)
    return rooms


def floors(rooms: Mapping[str, set[str]]) -> dict[str, int]:
    """Floor of each room; rooms in a circle, which have none, get the number of rooms."""
    found: dict[str, int] = {}
    while len(found) < len(rooms):
        ready = [r for r in rooms if r not in found and rooms[r] <= found.keys()]
        if not ready:
            return {room: found.get(room, len(rooms)) for room in rooms}
        found |= {r: 1 + max((found[t] for t in rooms[r]), default=-1) for r in ready}
    return found


def table(sources: Mapping[str, str]) -> str:
    """Rooms with their floors, files, lines and arrows in Markdown, the highest first."""
    rooms = arrows(imports(sources))
    levels = floors(rooms)
    sizes: dict[str, list[int]] = {}
    for file, text in sources.items():
        sizes.setdefault(room_of(module_name(file)), []).append(text.count('\n'))
    lines = ['| floor | room | files | lines | imports |', '|---|---|---|---|---|']
    for room in sorted(rooms, key=lambda r: (-levels[r], r)):
        targets = ', '.join(sorted(rooms[room], key=lambda r: (-levels[r], r)))
        size = sizes[room]
        lines.append(f'| {levels[room]} | {room} | {len(size)} | {sum(size)} | {targets} |')
    count = sum(map(len, rooms.values()))
    above = 1 + max(levels.values())
    lines.append(f'\n{len(rooms)} rooms on {above} floors, {count} arrows.')
    return '\n'.join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--revision', help='of Git (default: the files as they are)')
    args = parser.parse_args(arguments)
    print(table(read_revision(args.revision) if args.revision else read_checkout()))


if __name__ == '__main__':
    run(main)
