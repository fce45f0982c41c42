#!/usr/bin/env python
"""MMDetection's own ``tools/train.py``, same flags, and ``--clipq`` for any detector's config.

``--clipq [KEY=VALUE ...]`` adds mmclipq's base to the config: its hooks behind the config's own,
and the section ``clipq`` with these options, such as ``input_range=8 lq.loss_weight=0.2``. The
config that is written to the work folder has both and needs no ``--clipq``.

A training that is killed leaves whole checkpoints; ``--resume`` goes on from the newest one.

Several processes: ``torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch``, with or
without GPUs.
"""

import argparse

from _tool import run


def main(arguments: list[str]) -> None:
    import torch

    from mmclipq.apis.clipq_flag import add_clipq_flag, first_config_clipped
    from mmclipq.apis.mmdet_tools import run_mmdet_tool, runner_of_processes
    from mmclipq.engine import resumable_training

    parser = argparse.ArgumentParser(
        description=__doc__,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_clipq_flag(parser)
    options, rest = parser.parse_known_args(arguments)
    if '-h' in rest or '--help' in rest:
        parser.print_help()
        print("\nmmdet's own flags:\n")
    # Fresh deep networks meet denormal numbers, on which a CPU is several times slower.
    torch.set_flush_denormal(True)
    with first_config_clipped(options.clipq), resumable_training():
        run_mmdet_tool('train', [*rest, *runner_of_processes(rest)])


if __name__ == '__main__':
    run(main)
