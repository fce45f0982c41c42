#!/usr/bin/env python
"""Make a small detection data set from pixels that installed packages bring along.

Handwritten digits (scikit-learn) are pasted on crops of photographs (scikit-image): ten classes,
several sizes and colours, some of them overlapping. Nothing is downloaded. The folder holds the
same images in VOC layout (``JPEGImages``, ``Annotations``, ``ImageSets/Main``; ``test.txt`` names
the validation images) and in COCO layout (``annotations/instances_{train,val}.json``). The same
options give the same bytes.
"""

import argparse
import functools
import sys
from pathlib import Path

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description='Make a detection data set of handwritten digits on photographs.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = functools.partial(parser.add_argument, type=int)
    add('--out', type=Path, default=Path('data/digits'), help='folder to make')
    add('--size', nargs=2, default=(160, 160), metavar=('W', 'H'), help='of the images')
    add('--train', default=1000, metavar='N', help='training images')
    add('--val', default=150, metavar='N', help='validation images')
    add('--seed', default=0, help='of the random choices')
    parser.add_argument(
        '--force', action='store_true', help='replace a digits data set made with other options'
    )
    options = parser.parse_args(arguments)

    from _digits import DigitsError, make_digits

    try:
        made = make_digits(**vars(options))
    except (DigitsError, OSError) as error:
        sys.exit(f'make_digits: {error}')
    print(f'{options.out}: {"made" if made else "made with these very options already, kept"}.')


if __name__ == '__main__':
    run(main)
