#!/usr/bin/env python
"""Check a .clipq file against its float checkpoint, tensor by tensor, on test images.

Three executions are compared: the reference on integers, the same graph on dequantized float64
values (every code must be equal), and the prepared float model with rounding on (single steps).
Exits with 1 if the first two differ anywhere.
"""

import argparse
import sys

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config that the file was made with')
    parser.add_argument('checkpoint', help='float checkpoint that the file was made from')
    parser.add_argument('file', help='.clipq file')
    parser.add_argument('--images', type=int, default=4, help='number of images (default: 4)')
    parser.add_argument('--ap', action='store_true', help="also test the rounded model's AP")
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_range, find_config

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    check_file(args.file, 'a .clipq file')
    check_range('--images', args.images, 1)

    from mmengine.config import Config

    from mmclipq.apis.calibration_data import config_batches
    from mmclipq.apis.int8_file import load_parts
    from mmclipq.apis.quantize_checkpoint import load_for_quantization
    from mmclipq.evaluation.evaluate import evaluate
    from mmclipq.evaluation.verify import rounded_detector, verify

    cfg = Config.fromfile(args.config)
    parts = load_parts(args.file)
    model, _ = load_for_quantization(cfg, args.checkpoint)
    result = verify(model, parts, config_batches(cfg, args.images))
    print(result)
    if args.ap:
        with rounded_detector(model, parts) as rounded:
            ap = evaluate(rounded, cfg, 'rounded float model').ap
        print(f'AP of the rounded float model: {ap:.4f}')
    if result.unequal:
        sys.exit(1)


if __name__ == '__main__':
    run(main)
