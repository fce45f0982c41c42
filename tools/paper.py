#!/usr/bin/env python
"""Make tables and figures of the paper: train what is missing, keep what is there, print both.

TABLE is table1 to table9, figure7, figure8, several of them, or all. Each is printed with the
paper's own numbers and written as Markdown and JSON, figures as PNG, too. What an interrupted call
trained is kept: the same command goes on there.
"""

import argparse
from pathlib import Path

from _tool import run


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('tables', nargs='+', metavar='TABLE', help='names, or all')
    parser.add_argument('--data', required=True, help='digits, bccd, voc or coco')
    parser.add_argument('--seeds', type=int, default=3, help='0 up to this number (default: 3)')
    parser.add_argument('--detector', help="yolov3 or faster_rcnn (default: each table's own)")
    parser.add_argument(
        '--work-dir', type=Path, help='for trainings (default: work_dirs/paper/DATA)'
    )
    parser.add_argument('--out', type=Path, help='for pages (default: results in the work folder)')
    parser.add_argument(
        '--float', dest='stock', type=Path, metavar='PTH',
        help='trained checkpoint of the stock detector, instead of training it; with --detector',
    )  # fmt: skip
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (default: 1)')
    parser.add_argument('--report', action='store_true', help='print what is there, run nothing')
    parser.add_argument(
        '--into', type=Path, metavar='FILE', help='Markdown file whose marked tables to replace'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override entries of every config, for trials',
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)

    from mmclipq.apis.clipq_flag import parsed_options
    from mmclipq.apis.mmdet_tools import check_file, check_range
    from mmclipq.errors import ClipQError
    from mmclipq.experiments.definitions import TABLES
    from mmclipq.experiments.report import replaced
    from mmclipq.experiments.run import Request, make_tables

    check_range('--seeds', args.seeds, 1)
    check_range('--jobs', args.jobs, 1)
    names = list(TABLES) if args.tables == ['all'] else args.tables
    for name in names:
        if name not in TABLES:
            raise ClipQError(f'found table {name!r}, wanted all or some of {", ".join(TABLES)}')
    if args.into is not None:
        check_file(args.into, 'a Markdown file with markers')
    if args.stock is not None:
        check_file(args.stock, 'a float checkpoint (.pth)')
        if args.detector is None:
            raise ClipQError('found --float alone, wanted the --detector that it belongs to')
    folder = args.work_dir or Path('work_dirs/paper') / args.data
    request = Request(
        names, args.data, args.seeds, args.detector, folder, args.out or folder / 'results',
        args.jobs, args.report, parsed_options(args.cfg_options), args.stock,
    )  # fmt: skip
    for name, text in make_tables(request):
        print(text)
        if args.into is not None:
            changed = replaced(args.into.read_text(encoding='utf-8'), name, args.data, text)
            if changed is not None:
                args.into.write_text(changed, encoding='utf-8')


if __name__ == '__main__':
    run(main)
