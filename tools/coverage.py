#!/usr/bin/env python
"""Try detectors through every step: train, convert, predict; compare codes, error and time.

Without a config one of each family that mmdet ships is tried. Every detector has fresh weights and
drawn images, and a process of its own with a limit of time and memory. Prints one table, and exits
with 1 if a detector failed that works without mmclipq.
"""

import argparse
import shlex
import sys
from pathlib import Path

if __name__ != '__main__':
    # Libraries look for the package of this name, and this folder comes first for every tool.
    raise ImportError('found tools/coverage.py, which is no module', name=__name__)

from _tool import run


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG',
        help="detector configs, or mmdet's by name or path (default: one of each family)",
    )  # fmt: skip
    parser.add_argument('--quick', action='store_true', help='one detector of each kind')
    parser.add_argument('--size', type=int, default=256, help='of the images (default: 256)')
    parser.add_argument('--images', type=int, default=4, help='to calibrate on (default: 4)')
    parser.add_argument('--threads', type=int, default=1, help="torch's (default: 1)")
    parser.add_argument('--seed', type=int, default=0, help='of everything random (default: 0)')
    parser.add_argument(
        '--seconds',
        type=float,
        default=600,
        help='of the processor, limit for one detector (default: 600)',
    )
    parser.add_argument(
        '--gigabytes', type=float, default=12, help='limit for one detector (default: 12)'
    )
    parser.add_argument('--json', type=Path, help='file for all figures, after every detector')
    parser.add_argument('--resume', action='store_true', help='keep what the --json file holds')
    parser.add_argument('--out', type=Path, help='Markdown page to write, docs/detectors.md')
    args = parser.parse_args(arguments)

    from mmclipq.errors import ClipQError

    if args.resume and args.json is None:
        raise ClipQError('found --resume alone, wanted --json FILE with it')
    if args.quick and args.configs:
        raise ClipQError('found --quick with configs, wanted one of them')
    for name in ('size', 'images', 'threads', 'seconds', 'gigabytes'):
        if getattr(args, name) <= 0:
            raise ClipQError(f'--{name}: found {getattr(args, name)}, wanted a number above zero')
    return args


def main(arguments: list[str]) -> None:
    args = parse(arguments)

    from mmclipq.apis.mmdet_tools import find_config
    from mmclipq.evaluation import coverage

    names = args.configs or (coverage.QUICK if args.quick else coverage.FAMILIES)
    configs = [(name, find_config(name)) for name in names]
    settings = coverage.Settings(
        size=args.size,
        images=args.images,
        threads=args.threads,
        seed=args.seed,
        seconds=args.seconds,
        gigabytes=args.gigabytes,
    )
    for path in (args.json, args.out):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    outcomes = coverage.cover(configs, settings, args.json, args.resume)
    print(coverage.table(outcomes), *coverage.failures(outcomes), sep='\n')
    print(coverage.summary(outcomes))
    if args.out is not None:
        command = shlex.join(['python', 'tools/coverage.py', *arguments])
        args.out.write_text(coverage.page(outcomes, command, coverage.made_with(settings)))
    if not all(outcome.passed or outcome.excused for outcome in outcomes):
        sys.exit(1)


if __name__ == '__main__':
    run(main)
