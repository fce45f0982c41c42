#!/usr/bin/env python
"""Write a .clipq file as ONNX, as OpenVINO IR, or as a table of exponents for fixed point."""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='.clipq file')
    parser.add_argument('--format', required=True, choices=('onnx', 'openvino', 'table'))
    parser.add_argument('--out', required=True, metavar='PATH', help='*.onnx, *.xml or *.json')
    parser.add_argument('--opset', type=int, default=17, help='ONNX operator set (default: 17)')
    parser.add_argument('--ir-version', type=int, help='ONNX IR version (default: 8 or 9)')
    parser.add_argument(
        '--target', choices=('standard', 'onnxruntime', 'tensorrt'), default='standard',
        help='what runs the file: standard (default) is exact and fits most; onnxruntime lets '
        'leaky relu and residuals run on integers there; tensorrt has int8 alone',
    )  # fmt: skip
    parser.add_argument('--end2end', action='store_true', help='image in, boxes out')
    parser.add_argument('--score-thr', type=float, help="lowest score (default: the config's)")
    parser.add_argument('--iou-thr', type=float, help="IoU of NMS (default: the config's)")
    args = parser.parse_args(arguments)

    from mmclipq.apis.export_file import ExportOptions, export_file
    from mmclipq.apis.mmdet_tools import check_file

    check_file(args.file, 'a .clipq file')

    options = vars(args)
    file, out = options.pop('file'), options.pop('out')
    options['ir_version'] = options['ir_version'] or (8 if args.opset < 19 else 9)
    for path, size in export_file(file, out, ExportOptions(**options)).items():
        print(f'{path}: {size / 2**20:.2f} MiB')


if __name__ == '__main__':
    run(main)
