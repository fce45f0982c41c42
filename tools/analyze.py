#!/usr/bin/env python
"""Show where an int8 detector's accuracy goes, as one HTML page that needs nothing else.

AP of float and int8 with intervals, what every layer alone does to it, ranges, clipping and noise,
images with lost and gained boxes, what is left in float, bytes and time. Without a .clipq file the
checkpoint is quantized as tools/quantize.py does by default.

What is measured layer by layer lies in ``FOLDER.progress`` until the report is written, so the same
command goes on after an interruption.
"""

import argparse
from pathlib import Path

from _tool import run


def main(arguments: list[str]) -> None:
    from mmclipq.apis.clipq_flag import add_clipq_flag, read_config

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='detector config, with or without the clipq base')
    parser.add_argument('checkpoint', help='float checkpoint (.pth) of that detector')
    parser.add_argument('int8', nargs='?', metavar='FILE.clipq', help='int8 file made of it')
    parser.add_argument('--out', required=True, metavar='FOLDER', help='folder to write')
    parser.add_argument('--images', type=int, help='number of test images (default: all)')
    parser.add_argument(
        '--sample', type=int, default=16, help='images for figures of every layer (default: 16)'
    )
    parser.add_argument(
        '--suspects', type=int, default=5, help='layers whose AP is measured (default: 5)'
    )
    parser.add_argument(
        '--pictures', type=int, default=3, help='images shown for lost, and for gained (default: 3)'
    )
    parser.add_argument('--calib-images', type=int, help='to quantize on (default: 64)')
    parser.add_argument('--calib-dir', help='folder of these (default: the training set)')
    parser.add_argument('--backend', default='auto', help='backend of the int8 detector')
    parser.add_argument('--device', default='cpu', help='where everything runs')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config entries'
    )
    add_clipq_flag(parser)
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_device, check_file, check_range, find_config

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    if args.int8 is not None:
        check_file(args.int8, 'a .clipq file')
    if args.images is not None:
        check_range('--images', args.images, 2)
    check_range('--sample', args.sample, 1)
    for name in ('suspects', 'pictures'):
        check_range(f'--{name}', getattr(args, name), 0)
    check_device(args.device)

    from mmclipq.analysis.page.write import check_folder, write_report

    check_folder(args.out)

    from mmclipq.analysis.run import Options, analyze
    from mmclipq.backends.base import check_name

    check_name(args.backend)
    cfg = read_config(args.config, args.clipq, args.cfg_options)
    options = Options(
        args.images, args.sample, args.suspects, args.pictures, args.backend, args.device
    )
    calibration = {'calib_images': args.calib_images, 'calib_dir': args.calib_dir}
    progress = Path(args.out).absolute()
    progress = progress.with_name(f'{progress.name}.progress')
    analysis = analyze(cfg, args.checkpoint, args.int8, options, calibration, progress)
    page = write_report(analysis, args.out)
    progress.unlink(missing_ok=True)
    print(f'{analysis.differences[0]}')
    for layer in analysis.layers[: max(3, args.suspects)]:
        effect = '' if layer.ap is None else f'AP {layer.ap.difference:+.3f}, '
        print(f'  {layer.name}, alone in int8: {effect}agreement lost {layer.agreement_lost:.3f}')
    print(f'report: {page}')


if __name__ == '__main__':
    run(main)
