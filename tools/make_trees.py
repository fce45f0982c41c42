#!/usr/bin/env python
"""Write a digits data set in the folders of VOC and COCO, to try their configs without them.

``VOCdevkit`` and ``coco`` of the folder then hold digits under the names of ten other classes.
Nothing that is trained on them says anything about the real ones.
"""

import argparse
from pathlib import Path

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('digits', type=Path, help='folder that tools/make_digits.py made')
    parser.add_argument('--out', type=Path, required=True, help='folder, new or empty')
    args = parser.parse_args(arguments)

    from _trees import write_coco, write_voc

    from mmclipq.apis.mmdet_tools import check_file
    from mmclipq.errors import ClipQError

    check_file(args.digits / 'digits.json', 'a data set that tools/make_digits.py made')
    if args.out.exists() and any(args.out.iterdir()):
        raise ClipQError(f'{args.out}: found files there, wanted a new or empty folder')

    from mmdet.datasets import CocoDataset, VOCDataset

    write_voc(args.digits, args.out / 'VOCdevkit', VOCDataset.METAINFO['classes'])
    write_coco(args.digits, args.out / 'coco', CocoDataset.METAINFO['classes'])
    print(f'{args.out}: made VOCdevkit and coco')


if __name__ == '__main__':
    run(main)
