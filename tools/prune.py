#!/usr/bin/env python
"""Prune whole channels of a float checkpoint; write a config and a checkpoint to fine-tune.

Channels of the least batch-norm scale go until so many operations are gone. ``OUT/pruned.py`` is a
config of its own, with ``load_from`` set to ``OUT/pruned.pth``: train it, quantize it and test it
like any other. Wants the package torch-pruning.
"""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='detector config')
    parser.add_argument('checkpoint', help='float checkpoint (.pth) of that detector')
    parser.add_argument('--out', required=True, help='folder to make')
    parser.add_argument(
        '--operations', type=float, default=0.3, metavar='SHARE',
        help='of the operations that go (default: 0.3)',
    )  # fmt: skip
    parser.add_argument(
        '--round-to', type=int, default=16, metavar='N',
        help='numbers of channels are multiples of it (default: 16)',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_range, find_config

    args.config = find_config(args.config)
    check_file(args.checkpoint, 'a float checkpoint (.pth)')
    check_range('--operations', args.operations, 0, 0.95)
    check_range('--round-to', args.round_to, 1)

    from mmclipq.apis.clipq_flag import read_config
    from mmclipq.apis.prune_channels import prune_checkpoint

    cfg = read_config(args.config, None, args.cfg_options)
    print(prune_checkpoint(cfg, args.checkpoint, args.out, args.operations, args.round_to))


if __name__ == '__main__':
    run(main)
