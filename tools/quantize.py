#!/usr/bin/env python
"""Calibrate a float checkpoint and write the int8 detector as one ``.clipq`` file.

Checkpoint and calibration images are checked first: preprocessing, statistics of batch norm, what
the images show. What is found is printed and stops nothing; ``--check`` does no more than that and
exits with 1 if anything is found.

``--search`` and ``--max-drop`` measure detections. What they have found lies in ``FILE.progress``
beside the output until that is written, so the same command goes on after an interruption.

Of several processes that a launcher starts, the first does all of it, so the file is the same for
any number: sums of squares over images depend, in their last bits, on the order of the images.
"""

import argparse
import os
import sys

from _tool import run


def main(arguments: list[str]) -> None:
    from mmclipq.apis.clipq_flag import add_clipq_flag, read_config
    from mmclipq.calibration.options import METHODS, CalibrationOptions

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='detector config, with or without the clipq base')
    parser.add_argument('checkpoint', help='float checkpoint (.pth) of that detector')
    parser.add_argument('--out', metavar='FILE.clipq', help='file to write')
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument('--check', action='store_true', help='check, and write nothing')
    checks.add_argument('--no-check', action='store_true', help='write without a check')
    parser.add_argument('--calib-images', type=int, help='number of images (default: 64)')
    parser.add_argument('--calib-dir', help='folder of images (default: the training set)')
    parser.add_argument('--calib-seed', type=int, help='of their draw (default: 0)')
    parser.add_argument('--device', default='cpu', help='where calibration runs')
    parser.add_argument('--method', choices=METHODS, help='how ranges are chosen (default: mse)')
    parser.add_argument(
        '--percentile', type=float, help='share of the values that a range holds, in percent'
    )
    parser.add_argument(
        '--bias-correction', action=argparse.BooleanOptionalAction, default=None,
        help='let biases take back what rounding moves the mean of a channel by',
    )  # fmt: skip
    parser.add_argument(
        '--search', action='store_true',
        help='choose ranges by the detections themselves; goes on where it was interrupted',
    )  # fmt: skip
    parser.add_argument(
        '--max-drop', type=float, metavar='POINTS',
        help='leave as few layers in float as needed to lose at most so many AP points',
    )  # fmt: skip
    parser.add_argument(
        '--held-images', type=int, default=64,
        help='images beside those that calibrate, on which AP is measured (default: 64)',
    )  # fmt: skip
    parser.add_argument(
        '--size', type=float, metavar='SHARE',
        help='choose codes of weights so that the file is at most this share of the float32 '
        'weights, such as 0.12; goes best with --compress best',
    )  # fmt: skip
    parser.add_argument(
        '--compress', choices=('fast', 'best'), default='fast',
        help='best: some percent fewer bytes that take 30 ns each to read (default: fast)',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config entries'
    )
    add_clipq_flag(parser)
    args = parser.parse_args(arguments)
    if args.check == bool(args.out):
        parser.error('wanted either --out FILE.clipq or --check')
    if int(os.environ.get('RANK', 0)):
        return

    from mmclipq.apis.mmdet_tools import (
        check_device,
        check_file,
        check_out,
        check_range,
        find_config,
    )

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    check_device(args.device)
    chosen = {name: getattr(args, name) for name in ('method', 'percentile', 'bias_correction')}
    CalibrationOptions.of(None, **chosen)
    if args.out:
        check_out(args.out, '.clipq')
    check_range('--held-images', args.held_images, 2)
    if args.size is not None:
        check_range('--size', args.size, 0)
    if args.max_drop is not None:
        check_range('--max-drop', args.max_drop, 0)

    from mmclipq.apis.quantize_checkpoint import export_checkpoint
    from mmclipq.evaluation.check import check_checkpoint

    cfg = read_config(args.config, args.clipq, args.cfg_options)
    options = {
        'calib_images': args.calib_images,
        'calib_dir': args.calib_dir,
        'device': args.device,
    }
    written = {'compress': args.compress}
    if not args.no_check:
        report = check_checkpoint(cfg, args.checkpoint, **options)
        print(report)
        if args.check:
            sys.exit(1 if report.findings else 0)
    chosen |= {'calib_seed': args.calib_seed}
    if not args.search and args.max_drop is None and args.size is None:
        print(export_checkpoint(cfg, args.checkpoint, args.out, **written, **options, **chosen))
        return

    from mmclipq.evaluation.tuning.run import export_tuned

    tuning = {'search': args.search, 'max_drop': args.max_drop, 'size': args.size}
    tuning |= {'held_images': args.held_images}
    options |= written | tuning
    for report in export_tuned(cfg, args.checkpoint, args.out, **options, **chosen):
        print(report)


if __name__ == '__main__':
    run(main)
