#!/usr/bin/env python
"""Time a detector in every runtime at hand, in turn, in one run.

With --images it is the whole way from encoded images to boxes, with a trained checkpoint: decoding,
resizing, normalizing, the network, boxes, each stage's time, in float and in int8. With --sweep as
well, curves of mmclipq alone: throughput over threads and batch sizes, cost over sizes and boxes.

Else compared are the dense part (backbone, neck, dense head) at each number of threads and each
batch size, RoIAlign with the box heads of a two-stage detector, the way from an image tensor to
boxes, and on a CPU what a start takes in a fresh process. With --device cuda the rows are
PyTorch's and mmclipq's on a GPU, timed by its events. Rows that cannot run are left out with a line
that says why; of those on a CPU, pip install 'mmclipq[bench]' brings all.
Without a checkpoint the weights are fresh ones, which take the same time.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from _tool import run

IMAGES = 16
"""Images that are timed and that calibrate."""


def numbers(text: str) -> list[int]:
    """Whole numbers above zero, separated by commas."""
    found = [int(part) for part in text.split(',')]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f'found {text}, wanted numbers above zero')
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="detector config, or the name of one of mmdet's")
    parser.add_argument('checkpoint', nargs='?', help='float checkpoint (.pth)')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'))
    parser.add_argument(
        '--images', type=Path, metavar='FOLDER', help='time the way from these to boxes'
    )
    parser.add_argument(
        '--threads', type=numbers, help="numbers with commas (default: 1 and all of torch's)"
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:1 (default: cpu)')
    parser.add_argument(
        '--batch', type=numbers, help='numbers with commas (default: 1,8, on a GPU 1,8,32)'
    )
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds (default: 10)')
    parser.add_argument('--peers', help='names separated by commas (default: all)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--chart', type=Path, help='PNG file for bars of the times')
    parser.add_argument('--sweep', type=Path, help='PNG file for curves, with --images')
    parser.add_argument('--start', nargs=2, help=argparse.SUPPRESS)  # peer and file, in a child
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_out, check_range, find_config
    from mmclipq.errors import ClipQError

    args.config = find_config(args.config)
    if args.checkpoint:
        check_file(args.checkpoint, 'a float checkpoint (.pth)')
    if (args.shape is None) == (args.images is None):
        raise ClipQError('found neither or both of --shape and --images, wanted one of them')
    if args.images and not args.checkpoint:
        raise ClipQError('--images: found no checkpoint, wanted a trained one to find boxes with')
    if args.images and not args.images.is_dir():
        raise ClipQError(f'{args.images}: found no folder, wanted one with images')
    if args.shape:
        check_range('--shape', min(args.shape), 1)
    check_range('--rounds', args.rounds, 1)
    if args.json:
        check_out(args.json, '.json')
    if args.chart:
        check_out(args.chart, '.png')
    if args.sweep:
        check_out(args.sweep, '.png')
        if not args.images:
            raise ClipQError('--sweep: found no --images, wanted a folder of images')

    import torch
    from mmengine.config import Config

    from mmclipq.benchmark.parts import Setting
    from mmclipq.benchmark.run import find_platform
    from mmclipq.benchmark.timing import draw, measure_start

    platform = find_platform(args.device)
    wanted = args.peers.split(',') if args.peers else list(platform.peers)
    if unknown := [name for name in wanted if name not in platform.peers]:
        raise ClipQError(f'--peers: found {unknown}, wanted some of {list(platform.peers)}')
    torch.manual_seed(0)
    cfg = Config.fromfile(args.config)
    threads = args.threads or sorted({1, torch.get_num_threads()})
    if platform.device.type != 'cpu':
        if args.threads:
            raise ClipQError(f'--threads: found it with --device {args.device}, wanted it on a CPU')
        threads = threads[-1:]
    for path in (args.json, args.chart, args.sweep):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if args.images:
        figures = time_images(args, platform, wanted, cfg, threads)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2) + '\n')
        return
    batches = args.batch or platform.batches
    images = torch.randn(max(batches), 3, *args.shape).to(platform.device)
    if args.start:
        name, path = args.start
        start = measure_start(name, Setting(cfg, images[:1], threads[-1]), Path(path))
        print(json.dumps(start.as_dict()))
        return
    settings = [Setting(cfg, images[:batch], n) for n in threads for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        figures, panels = compare(args, platform, wanted, settings, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + '\n')
    if args.chart:
        title = [Path(args.config).stem, 'x'.join(map(str, args.shape))]
        draw(panels, args.chart, ', '.join(title + list(filter(None, [platform.about.get('gpu')]))))
        print(f'{args.chart}: written')


def compare(args, platform, wanted, settings, folder):
    """Print all tables; returns the figures for JSON and the timings for the chart."""
    from mmclipq.apis import build_detector, load_float_checkpoint, quantize
    from mmclipq.benchmark.peers import Subject
    from mmclipq.benchmark.run import Comparison, count_operations, save_files
    from mmclipq.errors import ClipQError

    cfg = settings[0].cfg
    stock, model = (build_detector(cfg.model, random=True).eval() for _ in range(2))
    if args.checkpoint:
        load_float_checkpoint(stock, args.checkpoint)
    model.load_state_dict(stock.state_dict())
    image = settings[0].images[:1].cpu()
    subject = Subject(cfg, stock, model, quantize(model, [image]), [image])
    files = save_files(platform, wanted, subject, folder)
    starts = []
    if platform.device.type == 'cpu':
        starts = time_starts(args, platform, files, max(s.threads for s in settings))
    work = count_operations(subject, settings[0])
    print(f'\n{work[0]:.1f} billion operations per image in the dense part')
    if work[1]:
        print(f'{work[1]:.1f} billion operations per image in the box heads')
    comparison = Comparison(platform, files, args.rounds, work)
    print(json.dumps(comparison.figures['machine']))
    comparison.figures['starts'] = starts
    for setting in settings:
        comparison.run(setting)
    if not comparison.panels:
        raise ClipQError('found no row that runs, wanted one; the lines above say why')
    return comparison.figures, comparison.panels


def time_images(args, platform, wanted, cfg, threads):
    """Print the way from encoded images to boxes; returns the figures for JSON."""
    from mmclipq.apis import build_detector, load_float_checkpoint, quantize
    from mmclipq.benchmark.peers import Subject
    from mmclipq.benchmark.run import save_files
    from mmclipq.benchmark.whole_way import array_pipeline, measure_ways, read_images, ways_table
    from mmclipq.errors import ClipQError

    if platform.device.type != 'cpu':
        raise ClipQError(f'--images: found it with --device {args.device}, wanted it on a CPU')
    stock, model = (build_detector(cfg.model).eval() for _ in range(2))
    load_float_checkpoint(stock, args.checkpoint)
    model.load_state_dict(stock.state_dict())
    pipeline = array_pipeline(cfg)
    encoded, ready = read_images(args.images, IMAGES, stock, pipeline)
    subject = Subject(cfg, stock, model, quantize(model, ready), ready)
    figures = {'machine': platform.machine(), 'images': len(encoded), 'ways': []}
    if args.sweep:
        figures['curves'] = time_curves(args, platform, subject, encoded, threads)
        return figures
    with tempfile.TemporaryDirectory() as folder:
        files = save_files(platform, wanted, subject, Path(folder))
        for count in threads:
            times, left = measure_ways(subject, files, encoded, pipeline, count, args.rounds)
            for name, reason in left.items():
                print(f'{name}: left out, {reason}')
            size = 'x'.join(map(str, subject.image.shape[2:]))
            title = f'{len(encoded)} images, {size}, {count} thread{"s" * (count != 1)}'
            print('\n' + ways_table(times, title))
            rows = [row.as_dict() for row in times]
            figures['ways'].append({'threads': count, 'rows': rows, 'left_out': left})
    return figures


def time_curves(args, platform, subject, encoded, threads):
    """Draw curves of mmclipq; returns them for JSON."""
    from mmclipq.benchmark.run import save_files
    from mmclipq.benchmark.sweep import draw_curves, sweep

    with tempfile.TemporaryDirectory() as folder:
        files = save_files(platform, ['mmclipq'], subject, Path(folder))
        curves = sweep(files['mmclipq'], subject.cfg, encoded, threads, args.rounds)
    for curve in curves:
        points = ', '.join(f'{x:g}: {y:.4g}' for x, y in zip(curve.x, curve.y, strict=True))
        print(f'{curve.panel}, {curve.name}: {points}')
    title = f'{Path(args.config).stem}, threads: {threads[-1]}'
    draw_curves(curves, args.sweep, title)
    print(f'{args.sweep}: written')
    return [curve.as_dict() for curve in curves]


def time_starts(args, platform, files, threads):
    """Print what a start in a fresh process takes; returns it for JSON."""
    from mmclipq.benchmark.timing import start_in_a_process, start_table

    command = [sys.executable, __file__, args.config, '--shape', *map(str, args.shape)]
    command += ['--threads', str(threads), '--batch', '1', '--start']
    starts = [
        start_in_a_process([*command, name, str(path)])
        for name, path in files.items()
        if not platform.peers[name].compiles
    ]
    print(start_table(starts))
    return [start.as_dict() for start in starts]


if __name__ == '__main__':
    run(main)
