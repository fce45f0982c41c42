#!/usr/bin/env python
"""Make int8 files of float checkpoints, and one table of what they lost and won.

Detectors are CONFIG and CHECKPOINT in turn, or a YAML list of them. A config is a file or one of
mmdet's by its name, a checkpoint a file or an address; ``published`` stands for the one that mmdet
has published for the config. Each is calibrated, tested in float and in int8 on the config's test
set, and timed, in a process of its own. A run that was stopped goes on where it was, and a detector
that fails does not stop the others.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from _tool import run


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'detectors', nargs='+', metavar='CONFIG CHECKPOINT', help='pairs, or one .yaml file'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the zoo')
    parser.add_argument('--data-root', help='of the data set, in place of what the configs say')
    parser.add_argument('--calib-images', type=int, help='images to calibrate on (default: 64)')
    parser.add_argument('--threads', type=int, default=1, help="torch's (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)

    from mmclipq.apis.mmdet_tools import check_range
    from mmclipq.errors import ClipQError
    from mmclipq.evaluation import zoo

    check_range('--threads', args.threads, 1)
    if args.calib_images is not None:
        check_range('--calib-images', args.calib_images, 1)
    if args.data_root is not None and not Path(args.data_root).is_dir():
        raise ClipQError(f'--data-root {args.data_root}: found no folder, wanted the data set')
    named = args.detectors
    if len(named) == 1 and Path(named[0]).suffix in ('.yaml', '.yml'):
        entries = zoo.read_list(named[0])
    elif len(named) % 2:
        raise ClipQError(
            f'found {named[-1]} without a checkpoint behind it, wanted CONFIG CHECKPOINT in turn '
            'or one .yaml file'
        )
    else:
        pairs = zip(named[::2], named[1::2], strict=True)
        entries = [zoo.Entry.make(c, None if p == 'published' else p) for c, p in pairs]
    settings = zoo.Settings(args.data_root, args.calib_images, args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = zoo.fill(entries, settings, args.out)
    about = {'versions': zoo.versions(), 'threads': args.threads}
    command = shlex.join(['python', 'tools/zoo.py', *arguments])
    (args.out / 'zoo.json').write_text(json.dumps({**about, 'rows': rows}, indent=1) + '\n')
    (args.out / 'README.md').write_text(zoo.page(rows, command, about))
    print(zoo.table(rows))
    print(f'see {args.out / "README.md"}')
    if any('failure' in row for row in rows.values()):
        sys.exit(1)


if __name__ == '__main__':
    run(main)
