#!/usr/bin/env python
"""Time a detector in every runtime at hand, in turn, in one run.

Compared are the dense part (backbone, neck, dense head) at each number of threads and each batch
size, the way from an image tensor to boxes, and what a start takes in a fresh process. Peers that
are not installed are left out with a line that says so: pip install 'mmclipq[bench]'.
Without a checkpoint the weights are fresh ones, which take the same time.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from mmclipq.apis.mmdet_tools import check_file, one_sentence_errors
from mmclipq.errors import ClipQError


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
    parser.add_argument('config', help='detector config')
    parser.add_argument('checkpoint', nargs='?', help='float checkpoint (.pth)')
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument(
        '--threads', type=numbers, help="numbers with commas (default: 1 and all of torch's)"
    )
    parser.add_argument('--batch', type=numbers, default=[1, 8], help='(default: 1,8)')
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds (default: 10)')
    parser.add_argument('--peers', help='names separated by commas (default: all)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--chart', type=Path, help='PNG file for bars of the times')
    parser.add_argument('--start', nargs=2, help=argparse.SUPPRESS)  # peer and file, in a child
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    check_file(args.config, 'a detector config')
    if args.checkpoint:
        check_file(args.checkpoint, 'a float checkpoint (.pth)')

    import torch
    from mmengine.config import Config

    from mmclipq.evaluation.benchmark import draw, measure_start
    from mmclipq.evaluation.peers import PEERS, Setting

    torch.manual_seed(0)
    cfg = Config.fromfile(args.config)
    threads = args.threads or sorted({1, torch.get_num_threads()})
    images = torch.randn(max(args.batch), 3, *args.shape)
    if args.start:
        name, path = args.start
        start = measure_start(name, Setting(cfg, images[:1], threads[-1]), Path(path))
        print(json.dumps(start.as_dict()))
        return
    wanted = args.peers.split(',') if args.peers else list(PEERS)
    if unknown := [name for name in wanted if name not in PEERS]:
        raise ClipQError(f'--peers: found {unknown}, wanted some of {list(PEERS)}')
    for path in (args.json, args.chart):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    settings = [Setting(cfg, images[:batch], n) for n in threads for batch in args.batch]
    with tempfile.TemporaryDirectory() as folder:
        figures, panels = compare(args, cfg, wanted, settings, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + '\n')
    if args.chart:
        size = 'x'.join(map(str, args.shape))
        draw(panels, args.chart, f'{Path(args.config).stem}, {size}')
        print(f'{args.chart}: written')


def compare(args, cfg, wanted, settings, folder):
    """Print all tables; returns the figures for JSON and the timings for the chart."""
    import torch

    from mmclipq.apis import build_detector, load_float_checkpoint, quantize
    from mmclipq.evaluation.benchmark import (
        operations,
        peak_run,
        start_in_a_process,
        start_table,
        table,
        time_in_turn,
    )
    from mmclipq.evaluation.peers import PEERS, Subject
    from mmclipq.evaluation.time_profile import profile_table
    from mmclipq.graph.nodes import Product
    from mmclipq.ops.library import why_unavailable

    stock, model = (build_detector(cfg.model, random=True).eval() for _ in range(2))
    if args.checkpoint:
        load_float_checkpoint(stock, args.checkpoint)
    model.load_state_dict(stock.state_dict())
    image = settings[0].images[:1]
    quantized = quantize(model, [image])
    subject = Subject(cfg, stock, model, quantized, image)
    shapes, work = {}, 0.0
    files = {}
    for name in wanted:
        if reason := PEERS[name].missing:
            print(f'{name}: left out, {reason}')
            continue
        print(f'{name}: preparing')
        with torch.no_grad():
            files[name] = PEERS[name].save(subject, folder)
    command = [sys.executable, __file__, args.config, '--shape', *map(str, args.shape)]
    command += ['--threads', str(max(s.threads for s in settings)), '--batch', '1', '--start']
    starts = [
        start_in_a_process([*command, name, str(path)])
        for name, path in files.items()
        if not PEERS[name].compiles
    ]
    print(start_table(starts))

    def note(node, value):
        if isinstance(node, Product):
            shapes[node.name] = value.shape

    from mmclipq.backends import build_backend

    build_backend('auto', quantized.graph, model).run(image, observe=note)
    work = operations(quantized.graph, shapes)
    print(f'\n{work:.1f} billion operations per image in the dense part')
    figures = {'giga_operations': work, 'machine': machine(), 'starts': []}
    figures['starts'] = [start.as_dict() for start in starts]
    figures['dense'], figures['whole'], panels = [], [], {}
    for setting in settings:
        torch.set_num_threads(setting.threads)
        runs = {}
        for name, path in files.items():
            with torch.no_grad():
                runs[name] = PEERS[name].load(setting, path)
        done = []
        if not why_unavailable():
            peak = peak_run()
            runs['peak'] = lambda peak=peak, done=done: done.append(peak())
        batch = len(setting.images)
        timings = time_in_turn(runs, args.rounds if batch == 1 else max(3, args.rounds // 3))
        row = {'threads': setting.threads, 'batch': batch}
        share = {}
        if done:
            speed = done[-1] / timings.pop().median * 1000 / 1e9
            share = {t.name: work * batch / t.median * 1000 / speed for t in timings}
            row['int8_peak_giga_operations_per_second'] = speed
            print(f'\nint8 peak: {speed / 1000:.2f} TOP/s')
        print(table(f'dense part, {setting}', timings, batch, share))
        figures['dense'].append({**row, 'rows': [t.as_dict() for t in timings]})
        panels[f'dense part, {setting}'] = timings
        if batch == 1:
            timings, steps = whole(stock, files.get('mmclipq'), setting, max(3, args.rounds // 3))
            print(table(f'image tensor to boxes, {setting}', timings, batch, {}))
            if steps:
                print(profile_table(steps, f'mmclipq, image tensor to boxes, {setting}'))
            rows = [t.as_dict() for t in timings]
            figures['whole'].append({**row, 'rows': rows, 'profile': steps})
            panels[f'image tensor to boxes, {setting}'] = timings
    return figures, panels


def whole(stock, path, setting, rounds):
    """Timings from image tensors to boxes in eager float32 and of the file, and its steps."""
    from mmclipq.apis import load_int8
    from mmclipq.detector import plain_samples
    from mmclipq.evaluation.benchmark import time_in_turn
    from mmclipq.evaluation.time_profile import profile_prediction

    images = setting.images
    runs = {'torch': lambda: stock.predict(images, plain_samples(images))}
    if path is None:
        return time_in_turn(runs, rounds), {}
    detector = load_int8(path)
    runs['mmclipq'] = lambda: detector.predict(images, plain_samples(images))
    timings = time_in_turn(runs, rounds)
    return timings, profile_prediction(detector, runs['mmclipq'], rounds)


def machine() -> dict:
    """What the figures were measured on."""
    import importlib.metadata

    packages = ('torch', 'mmdet', 'onnxruntime', 'openvino', 'nncf')
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        'processors': os.cpu_count(),
        'instructions': os.environ.get('ONEDNN_MAX_CPU_ISA', 'all'),
        'versions': versions,
    }


if __name__ == '__main__':
    with one_sentence_errors():
        main(sys.argv[1:])
