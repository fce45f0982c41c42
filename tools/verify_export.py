#!/usr/bin/env python
"""Compare exported graphs in another runtime with the reference, tensor by tensor.

Counts differing codes on images of the config's data, the layers that the runtime executes in 8-bit
integers, and the size of the exported models. ``--backend table`` executes the table of exponents
that ``tools/export.py --format table`` writes, in integers.
"""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config that the file was made with')
    parser.add_argument('file', help='.clipq file')
    parser.add_argument(
        '--backend', default='onnxruntime', choices=('onnxruntime', 'openvino', 'table'),
        help='what executes the exported graphs (default: onnxruntime)',
    )  # fmt: skip
    parser.add_argument('--images', type=int, default=4, help='number of images (default: 4)')
    parser.add_argument('--table', action='store_true', help='also a Markdown table of all tensors')
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_range, find_config

    args.config = find_config(args.config)
    check_file(args.file, 'a .clipq file')
    check_range('--images', args.images, 1)

    from mmengine.config import Config

    from mmclipq.apis import load_int8
    from mmclipq.apis.calibration_data import config_batches
    from mmclipq.apis.int8_file import load_parts
    from mmclipq.evaluation.runtimes import compare_runtime

    detector = load_int8(args.file, predicts=False)
    batches = config_batches(Config.fromfile(args.config), args.images)
    report = compare_runtime(detector, load_parts(args.file), batches, args.backend)
    print(report)
    if args.table:
        print(f'\n{report.table()}')


if __name__ == '__main__':
    run(main)
