#!/usr/bin/env python
"""Print how large int8 files are: where the bytes of .clipq files are, or those of configs.

Of each .clipq file: bytes by part, what other coders would need, entropy and zeros by layer.

Of configs: the size of the file that each gives, beside the float weights of the first one. Each
config's detector gets the same weights: those of --checkpoint, or fresh ones of the first config,
which fill their ranges evenly and are the hardest to compress. Activation ranges take no room in
the file, so noise serves as calibration.
"""

import argparse
import tempfile
from pathlib import Path

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'files', nargs='*', help='.clipq files, or detector configs, the plain one first'
    )
    parser.add_argument(
        '--plot', nargs=2, metavar=('POINTS.json', 'OUT.png'),
        help='draw AP over size from {"name": [{"size": 0.12, "AP": 0.4}, ...]}',
    )  # fmt: skip
    parser.add_argument(
        '--checkpoint',
        help='float checkpoint (.pth) of the first config; beside .clipq files the one that '
        'nncodec codes, where that package is installed',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_out, find_config

    if not args.files and not args.plot:
        parser.error('wanted files or --plot')
    if args.plot:
        from mmclipq.evaluation.storage import plot, read_points

        check_out(args.plot[1], Path(args.plot[1]).suffix)
        plot(read_points(args.plot[0]), args.plot[1])
        print(args.plot[1])
        if not args.files:
            return
    if all(Path(path).suffix == '.clipq' for path in args.files):
        from mmclipq.evaluation.storage import nncodec_bytes, report

        others = {}
        if args.checkpoint:
            check_file(args.checkpoint, 'a float checkpoint (.pth)')
            others = nncodec_bytes(args.checkpoint)
        for path in args.files:
            print(report(path, others))
        return
    args.configs = [find_config(path) for path in args.files]
    if args.checkpoint:
        check_file(args.checkpoint, 'a float checkpoint (.pth)')

    import torch

    from mmclipq.apis import build_detector, load_float_checkpoint, quantize, save_int8
    from mmclipq.apis.clipq_flag import read_config
    from mmclipq.evaluation.compare import weight_bytes

    torch.manual_seed(0)
    state, whole = None, 0
    print("| config | float32 MiB | int8 file MiB | of the first one's float32 |")
    print('|---|---|---|---|')
    for path in args.configs:
        cfg = read_config(path, None, args.cfg_options)
        model = build_detector(cfg.model, random=True).eval()
        if state is None:
            if args.checkpoint:
                load_float_checkpoint(model, args.checkpoint)
            state, whole = model.state_dict(), weight_bytes(model)
        else:
            model.load_state_dict(state, strict=False)
        quantized = quantize(model, [torch.randn(1, 3, 128, 128)], cfg.get('clipq'))
        with tempfile.TemporaryDirectory() as folder:
            size = save_int8(Path(folder) / 'x.clipq', model, quantized, cfg, {})
        print(
            f'| {Path(path).stem} | {weight_bytes(model) / 2**20:.2f} | {size / 2**20:.2f} '
            f'| {size / whole:.2%} |'
        )


if __name__ == '__main__':
    run(main)
