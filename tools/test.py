#!/usr/bin/env python
"""MMDetection's own ``tools/test.py`` with ``--int8``: the AP of integer execution.

With ``--int8`` CHECKPOINT is a ``.clipq`` file, an end-to-end ``.onnx`` or ``.xml`` file, or a
float checkpoint, which is calibrated and converted on the fly. With ``--against`` a float one
is tested, too, and the difference of AP printed with its 95 % interval. Without ``--int8`` this is
mmdet's tool. ``--clipq`` makes the config that of ``tools/train.py --clipq``: its options convert a
float checkpoint, and without ``--int8`` the float detector has its clipped layers. All other flags
are mmdet's.

Several processes: ``torchrun --nproc-per-node 2 tools/test.py CONFIG FILE.clipq --int8 --launcher
pytorch``, with or without GPUs; the images are shared out and the AP is that of one process.
"""

import argparse
from pathlib import Path

from _tool import run


def _against(checkpoint: str) -> str:
    """Name of a runner that tests ``checkpoint`` behind the integers."""
    from mmclipq.apis.mmdet_tools import check_file

    check_file(checkpoint, 'a float checkpoint (.pth)')

    from mmclipq.engine import Int8Runner
    from mmclipq.evaluation.against import test_against
    from mmclipq.registry import RUNNERS

    @RUNNERS.register_module(force=True)
    class AgainstRunner(Int8Runner):
        def test(self):
            return test_against(self, super().test, checkpoint)

    return 'mmclipq.AgainstRunner'


def main(arguments: list[str]) -> None:
    from mmclipq.apis.clipq_flag import add_clipq_flag, first_config_clipped

    parser = argparse.ArgumentParser(
        description=__doc__,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--int8', action='store_true', help='evaluate integer execution')
    parser.add_argument(
        '--backend', default='auto',
        help='auto, cpu, cuda, int_mm, reference, simulated, onnxruntime, openvino or table',
    )  # fmt: skip
    parser.add_argument('--calib-images', type=int, help='images to calibrate a float checkpoint')
    add_clipq_flag(parser)
    parser.add_argument('--against', metavar='PTH', help='float checkpoint to compare with')
    options, rest = parser.parse_known_args(arguments)

    from mmclipq.apis.mmdet_tools import (
        check_file,
        check_range,
        find_config,
        run_mmdet_tool,
        runner_of_processes,
    )
    from mmclipq.errors import ClipQError

    if '-h' in rest or '--help' in rest:
        parser.print_help()
        print("\nmmdet's own flags:\n")
        run_mmdet_tool('test', rest)
        return
    if rest and not rest[0].startswith('-'):
        rest[0] = find_config(rest[0])
    if options.int8:
        from mmclipq.backends.base import check_name

        check_name(options.backend)
        if options.calib_images is not None:
            check_range('--calib-images', options.calib_images, 1)
        if len(rest) > 1 and not rest[1].startswith('-'):
            check_file(rest[1], 'a .clipq file, an exported one or a float checkpoint (.pth)')
        runner = _against(options.against) if options.against else 'mmclipq.Int8Runner'
        rest += [
            '--cfg-options',
            f'runner_type={runner}',
            f'int8_test.backend={options.backend}',
        ]
        if options.calib_images is not None:
            rest.append(f'int8_test.calib_images={options.calib_images}')
    elif options.backend != 'auto' or options.calib_images is not None or options.against:
        raise ClipQError(
            'found --backend, --calib-images or --against alone, wanted --int8 with them'
        )
    elif len(rest) > 1 and Path(rest[1]).suffix in ('.clipq', '.onnx', '.xml'):
        suffix = Path(rest[1]).suffix
        raise ClipQError(f'{rest[1]}: found a {suffix} file without --int8; add --int8')
    elif len(rest) > 1 and not rest[1].startswith('-') and '://' not in rest[1]:
        check_file(rest[1], 'a checkpoint (.pth)')
    if not options.int8:
        rest += runner_of_processes(rest)
    with first_config_clipped(options.clipq):
        run_mmdet_tool('test', rest)


if __name__ == '__main__':
    run(main)
