#!/usr/bin/env python
"""Test one float checkpoint behind integers, calibrated in several ways, against itself in float.

Prints a table with the difference of AP on the test set, in points, for each draw of calibration
images, and the 95 % interval of the first one. ``+bias`` behind a way corrects biases.
"""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='detector config')
    parser.add_argument('checkpoint', help='float checkpoint (.pth) of that detector')
    parser.add_argument(
        '--ways', nargs='+', default=['max', 'percentile', 'mse', 'kl', 'output'],
        help='paper, max, percentile, mse, kl, output or search, +bias behind it or not; '
        'weights or inputs for the rounding of these alone, in float32; nncf, nncf-mixed (preset '
        'MIXED), nncf-accuracy (accuracy control) or onnxruntime for these libraries, in int8',
    )  # fmt: skip
    parser.add_argument('--draws', type=int, default=1, help='of calibration images')
    parser.add_argument('--calib-images', type=int, help='number of images (default: 64)')
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_range, find_config

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    check_range('--draws', args.draws, 1)

    from mmengine.config import Config

    from mmclipq.evaluation.tuning.compare import check_way, compare_calibrations, table
    from mmclipq.experiments.rivals import AFTER_TRAINING

    for way in args.ways:
        check_way(way, AFTER_TRAINING)
        if way in AFTER_TRAINING:
            AFTER_TRAINING[way].check()
    rows = []
    found = compare_calibrations(
        Config.fromfile(args.config), args.checkpoint, args.ways, args.draws, args.calib_images,
        {way: rival.quantized for way, rival in AFTER_TRAINING.items()},
    )  # fmt: skip
    for row in found:
        print(f'{row.way}, draw {row.draw}: {row.difference}', flush=True)
        rows.append(row)
    print(table(rows))


if __name__ == '__main__':
    run(main)
