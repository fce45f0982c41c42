#!/usr/bin/env python
"""Kill training, export, quantization, search and analysis with SIGKILL at random moments.

Each runs on a tiny detector and a few tiny images, in a copy of this process. Half of the kills
come at any time, half of them within 3 ms of a step: a file opened to write, renamed or removed.
After each one every file must be the older one or the new one, whole. The same command then runs
again, to its end or into the next kill; what it leaves must equal what an undisturbed run leaves,
without any other file. --seed gives the same moments again, as far as the machine allows.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _tool import run

CASES = ('train', 'export', 'quantize', 'search', 'analyze')
STOCK = 'train-stock'


@dataclass
class Case:
    """A tool to kill.

    Attributes:
        name: What it is called here.
        commands: Command lines; one is drawn for each run.
        tool: Module of the tool.
        old: Command lines that make what was there before, for each one of ``commands``.
        others: Digests that a file may have after a kill, beside those of the old and new one.
    """

    name: str
    tool: str
    commands: list[list[str]]
    old: list[list[str]] = field(default_factory=list)
    others: Mapping[str, set[str]] = field(default_factory=dict)


@dataclass
class Tally:
    """What came of a case's kills."""

    killed: int = 0
    too_late: int = 0
    chained: int = 0
    wrong: list[str] = field(default_factory=list)


class Trials:
    """Runs of one command of a case.

    Args:
        case: The case.
        index: Number of the command.
        root: Folder of its own.
    """

    def __init__(self, case: Case, index: int, root: Path) -> None:
        from _killing import run_tool

        self.case, self.command, self.root = case, case.commands[index], root
        root.mkdir(parents=True)
        self.before, self.folder = root / 'old', root / 'work'
        self.before.mkdir()
        if case.old:
            self._whole(run_tool(case.tool, self._at(self.before, case.old[index]), self.before))
        shutil.rmtree(self.before / 'tmp', ignore_errors=True)
        self.reset()
        self.usual = run_tool(case.tool, self._at(self.folder, self.command), self.folder)
        self._whole(self.usual)
        from _contents import contents

        self.old, self.new = contents(self.before), contents(self.folder)
        self.end = contents(self.folder, everything=True)
        if self.old == self.new:
            raise RuntimeError(f'{case.name}: the old and the new files are the same')

    def _at(self, folder: Path, command: list[str]) -> list[str]:
        return [word.replace('FOLDER', str(folder)) for word in command]

    def _whole(self, end: object) -> None:
        if getattr(end, 'code', 1):
            log = ''.join(path.read_text()[-3000:] for path in self.root.glob('*.log'))
            raise RuntimeError(f'{self.case.name}: found {end}, wanted an undisturbed run\n{log}')

    def reset(self) -> None:
        """Put what was there before in place."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.before, self.folder)

    def kill(self, rng: random.Random, tally: Tally) -> None:
        """Kill one run, and another one or two that go on with it; then let one end."""
        from _contents import contents, torn
        from _killing import moment, run_tool

        arguments = self._at(self.folder, self.command)
        self.reset()
        for turn in range(rng.choice((1, 1, 2, 3))):
            when = moment(rng, self.usual.steps, self.usual.seconds)
            end = run_tool(self.case.tool, arguments, self.folder, when)
            tally.killed += end.killed
            tally.chained += end.killed and turn > 0
            tally.too_late += not end.killed
            where = f'{self.case.name}, {when}'
            tally.wrong += [f'{where}: {text}' for text in torn(self.folder)]
            found = contents(self.folder)
            for name in self.old.keys() - found.keys():
                tally.wrong.append(f'{where}: {name} is gone')
            for name, digest in found.items():
                allowed = self.case.others.get(name, set()) | {self.new.get(name)}
                allowed |= {self.old.get(name)}
                if digest not in allowed and '*' not in allowed:
                    tally.wrong.append(f'{where}: {name} is neither the old nor the new one')
            if not end.killed:
                break
        end = run_tool(self.case.tool, arguments, self.folder)
        if end.code:
            tally.wrong.append(f'{where}: the next run exits with {end.code}')
        found = contents(self.folder, everything=True)
        for name in sorted(found.keys() ^ self.end.keys()):
            side = 'is left over' if name in found else 'is missing'
            tally.wrong.append(f'{where}: {name} {side} after the next run')
        for name in found.keys() & self.end.keys():
            if found[name] != self.end[name]:
                tally.wrong.append(f'{where}: {name} of the next run is not that of one alone')


def campaign(case: Case, count: int, seed: int, folder: Path, show: bool) -> Tally:
    """Kill runs of a case ``count`` times."""
    from tqdm import tqdm

    trials = [Trials(case, i, folder / case.name / str(i)) for i in range(len(case.commands))]
    rng, tally = random.Random(f'{case.name} {seed}'), Tally()
    with tqdm(total=count, desc=case.name, unit='kill', disable=not show) as bar:
        while tally.killed < count and len(tally.wrong) < 20:
            rng.choice(trials).kill(rng, tally)
            bar.update(min(tally.killed, count) - bar.n)
    return tally


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=40, help='kills of each tool (default: 40)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    parser.add_argument(
        '--only', nargs='+', choices=(*CASES, STOCK), default=CASES, metavar='TOOL',
        help=f'some of {", ".join(CASES)}; {STOCK} is a training with the checkpoints of '
        'MMEngine, which shows what is found without those of mmclipq',
    )  # fmt: skip
    parser.add_argument('--folder', help='where everything is made (default: a temporary one)')
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error(f'--count: found {args.count}, wanted at least 1')

    import torch
    from _victims import make_cases

    torch.set_num_threads(1)
    wrong: list[str] = []
    makers: dict[str, Callable[[], Case]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary).absolute()
        makers = make_cases(folder / 'project')
        print('| tool | kills | of these, of a run that went on | ended first | wrong | s |')
        print('|---|---|---|---|---|---|', flush=True)
        for name in args.only:
            start = time.monotonic()
            tally = campaign(makers[name](), args.count, args.seed, folder, sys.stderr.isatty())
            wrong += tally.wrong
            seconds = time.monotonic() - start
            for text in tally.wrong:
                print(f'wrong: {text}', file=sys.stderr, flush=True)
            print(f'| {name} | {tally.killed} | {tally.chained} | {tally.too_late} '
                  f'| {len(tally.wrong)} | {seconds:.0f} |', flush=True)  # fmt: skip
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    run(main)
