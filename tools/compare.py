#!/usr/bin/env python
"""Evaluate float, clipped float and int8 on a config's test set: one table and one picture.

A second table has the differences of AP to the first detector, with their 95 % intervals.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the detector, with the clipq base if it has one')
    parser.add_argument('--float', dest='float_', metavar='PTH', help='float checkpoint')
    parser.add_argument('--control', metavar='PTH', help='float checkpoint trained as long')
    parser.add_argument('--clipped', metavar='PTH', help='checkpoint of the clipped training')
    parser.add_argument('--int8', metavar='CLIPQ', action='append', default=[], help='int8 file')
    parser.add_argument('--backend', default='auto', help='backend of the int8 files')
    parser.add_argument('--picture', help='PNG with the detections side by side')
    parser.add_argument('--json', help='file for the figures')
    args = parser.parse_args(arguments)
    named = [
        ('float', args.float_),
        ('float control', args.control),
        ('clipped float', args.clipped),
    ]
    named = [(name, path) for name, path in named if path]
    if not named and not args.int8:
        parser.error('wanted at least one of --float, --control, --clipped, --int8')

    from mmclipq.apis.mmdet_tools import check_file, check_out, find_config

    args.config = find_config(args.config)
    for _, path in named:
        check_file(path, 'a float checkpoint (.pth)')
    for path in args.int8:
        check_file(path, 'a .clipq file')
    if args.picture:
        check_out(args.picture, '.png')
    if args.json:
        check_out(args.json, '.json')

    from mmengine.config import Config

    from mmclipq.apis import build_detector, load_float_checkpoint, load_int8
    from mmclipq.apis.quantize_checkpoint import load_for_quantization
    from mmclipq.evaluation.compare import Row, draw_side_by_side, table, weight_bytes
    from mmclipq.evaluation.evaluate import evaluate
    from mmclipq.evaluation.interval import ap_differences, difference_table

    cfg = Config.fromfile(args.config)
    detectors = []
    for name, path in named:
        if name == 'clipped float':
            detector, _ = load_for_quantization(cfg, path)
        else:
            detector = build_detector(cfg.model)
            load_float_checkpoint(detector, path)
        detectors.append((name, detector, weight_bytes(detector)))
    for path in args.int8:
        name = 'int8' if len(args.int8) == 1 else f'int8 {Path(path).stem}'
        detectors.append((name, load_int8(path, backend=args.backend), os.path.getsize(path)))
    results = [evaluate(d, cfg, name, matched=len(detectors) > 1) for name, d, _ in detectors]
    rows = [
        Row.make(name, result, size)
        for (name, _, size), result in zip(detectors, results, strict=True)
    ]
    print(table(rows))
    figures: list[dict[str, Any]] = [row.as_dict() for row in rows]
    compared = []
    for row, figure, result in list(zip(rows, figures, results, strict=True))[1:]:
        if results[0].matches is None or result.matches is None:
            continue
        found = ap_differences(results[0].matches, result.matches)
        compared += [(f'{row.name}, {d.name}', d) for d in found if d.name in ('AP', 'AP50')]
        figure['against'] = {'detector': rows[0].name, 'rows': [d.as_dict() for d in found]}
    if compared:
        print()
        print(difference_table('difference', compared, rows[0].name, 'this one'))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(figures, indent=2) + '\n')
    if args.picture:
        shown = [(name, d) for name, d, _ in detectors if name in ('float', 'int8')]
        draw_side_by_side(shown or [(n, d) for n, d, _ in detectors], cfg, args.picture)
        print(f'picture: {args.picture}')


if __name__ == '__main__':
    run(main)
