#!/usr/bin/env python
"""Calibrate a float checkpoint and write the int8 detector as one ``.clipq`` file."""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    from mmclipq.apis.clipq_flag import add_clipq_flag

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='detector config, with or without the clipq base')
    parser.add_argument('checkpoint', help='float checkpoint (.pth) of that detector')
    parser.add_argument('--out', required=True, metavar='FILE.clipq', help='file to write')
    parser.add_argument('--calib-images', type=int, help='number of images (default: 64)')
    parser.add_argument('--calib-dir', help='folder of images (default: the training set)')
    parser.add_argument('--device', default='cpu', help='where calibration runs')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config entries'
    )
    add_clipq_flag(parser)
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_device, check_file, find_config

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    check_device(args.device)

    from mmengine.config import Config, DictAction

    from mmclipq.apis.clipq_config import with_clipq
    from mmclipq.apis.quantize_checkpoint import export_checkpoint

    cfg = Config.fromfile(args.config)
    if args.clipq is not None:
        cfg = with_clipq(cfg, args.clipq)
    if args.cfg_options:
        override = argparse.ArgumentParser()
        override.add_argument('--cfg-options', nargs='+', action=DictAction)
        cfg.merge_from_dict(override.parse_args(['--cfg-options', *args.cfg_options]).cfg_options)
    summary = export_checkpoint(
        cfg,
        args.checkpoint,
        args.out,
        calib_images=args.calib_images,
        calib_dir=args.calib_dir,
        device=args.device,
    )
    print(summary)


if __name__ == '__main__':
    run(main)
