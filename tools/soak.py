#!/usr/bin/env python
"""Let several threads share one int8 detector for a long time, on images of changing sizes.

Every result must equal the one that the same image gives alone, and memory, open files and threads
must stay where they were once every size has been seen. With --processes several processes share
the file at once, each with its own detector and threads; what an image gives alone must be the same
in all of them.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from _tool import run

GROWTH = 1.05
"""Most that memory may grow from the first tenth of the images on."""


def usage() -> tuple[float, int, int]:
    """MiB in memory, open files and threads of this process."""
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    files = len(os.listdir('/proc/self/fd'))
    return int(status['VmRSS'].split()[0]) / 1024, files, int(status['Threads'])


def results(detector: Any, images: Any) -> list[Any]:
    """Boxes, scores and labels of images ``(N, 3, H, W)``."""
    from mmclipq.detector import plain_samples

    found = []
    for sample in detector.predict(images, plain_samples(images)):
        made = sample.pred_instances
        found += [made.bboxes, made.scores, made.labels]
    return found


def soak(detector: Any, threads: int, count: int, sizes: list[tuple[int, int]], show: bool) -> dict:
    """Run ``count`` images on each thread; returns what was seen.

    Returns:
        Numbers of images and of results that differ, errors, seconds, ``samples`` of
        ``(images, *usage())``, and the digest of what the images give alone.
    """
    import torch
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, *size, generator=generator) for size in sizes]
    alone = [results(detector, image) for image in images]
    digest = hashlib.sha256()
    for found in alone:
        for tensor in found:
            digest.update(repr(tensor.tolist()).encode())
    total = threads * count
    done, different, errors = [0] * threads, [0] * threads, []

    def loop(number: int) -> None:
        rng = random.Random(number)
        try:
            for _ in range(count):
                which = rng.randrange(len(images))
                found = results(detector, images[which])
                same = all(map(torch.equal, found, alone[which]))
                different[number] += not (same and len(found) == len(alone[which]))
                done[number] += 1
        except Exception as error:  # told by the main thread
            errors.append(f'{type(error).__name__}: {error}')

    workers = [threading.Thread(target=loop, args=(i,), daemon=True) for i in range(threads)]
    start = time.monotonic()
    samples: list[tuple[int, float, int, int]] = []
    for worker in workers:
        worker.start()
    with tqdm(total=total, desc='images', unit='image', disable=not show) as bar:
        while any(worker.is_alive() for worker in workers):
            bar.update(sum(done) - bar.n)
            if sum(done) >= len(samples) * total / 100:
                samples.append((sum(done), *usage()))
            time.sleep(0.05)
    samples.append((sum(done), *usage()))
    return {
        'images': sum(done),
        'different': sum(different),
        'errors': errors,
        'seconds': round(time.monotonic() - start, 1),
        'samples': samples,
        'alone': digest.hexdigest(),
    }


def in_process(
    file: str, backend: str, threads: int, count: int, sizes: list[tuple[int, int]], show: bool
) -> dict:
    """:func:`soak` of a file's detector, in this process."""
    import torch

    from mmclipq.apis import load_int8

    torch.set_num_threads(1)
    return soak(load_int8(file, backend=backend), threads, count, sizes, show)


def in_processes(number: int, *arguments: Any) -> list[dict]:
    """:func:`in_process` in several processes at once; the first shows its progress."""
    context = multiprocessing.get_context('spawn')
    with context.Pool(number) as pool:
        jobs = [pool.apply_async(in_process, (*arguments, index == 0)) for index in range(number)]
        found = [job.get() for job in jobs]
        pool.close()
        pool.join()  # so that they clean up, where the end of the pool would terminate them
        return found


def plot(reports: list[dict], path: str) -> None:
    """Draw memory, open files and threads over the images of each process."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 1, figsize=(7, 5), sharex=True, layout='constrained')
    for index, (panel, name) in enumerate(
        zip(panels, ('MiB in memory', 'open files', 'threads'), strict=True), 1
    ):
        for report in reports:
            images = [sample[0] for sample in report['samples']]
            panel.plot(images, [sample[index] for sample in report['samples']], linewidth=1.2)
        panel.set_ylabel(name)
        panel.set_ylim(0, 1.15 * max(s[index] for report in reports for s in report['samples']))
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel('images' if len(reports) == 1 else 'images of each process')
    figure.savefig(path, dpi=110, metadata={'Date': None} if path.endswith('.svg') else None)
    pyplot.close(figure)


def verdict(report: dict) -> list[str]:
    """What is wrong with a report; empty if nothing is."""
    wrong = [f'{report["different"]} results differ'] if report['different'] else []
    wrong += [f'a thread ended with {error}' for error in report['errors']]
    samples = report['samples']
    first = [sample for sample in samples if sample[0] >= report['images'] / 10][0]
    last = samples[-1]
    if last[1] > GROWTH * first[1]:
        wrong.append(f'memory grew from {first[1]:.0f} to {last[1]:.0f} MiB')
    for index, name in ((2, 'open files'), (3, 'threads')):
        # The threads that were started end before the last sample.
        if last[index] > first[index]:
            wrong.append(f'{name} grew from {first[index]} to {last[index]}')
    return wrong


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', help='.clipq file')
    parser.add_argument('--threads', type=int, default=8)
    parser.add_argument('--images', type=int, default=1000, help='for each thread (default: 1000)')
    parser.add_argument('--sizes', type=int, default=24, help='number of sizes (default: 24)')
    parser.add_argument('--side', type=int, default=256, help='largest side (default: 256)')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--processes', type=int, default=1, help='(default: 1)')
    parser.add_argument('--json', metavar='FILE', help='write what was seen')
    parser.add_argument('--plot', metavar='FILE', help='draw it as *.png or *.svg')
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_file, check_range

    check_file(args.file, 'a .clipq file')
    for name in ('threads', 'images', 'sizes', 'processes'):
        check_range(f'--{name}', getattr(args, name), 1)
    check_range('--side', args.side, 64)

    from mmclipq.graph.writing import write_atomically

    rng = random.Random(0)
    sides = range(64, args.side + 1, 32)  # as a data preprocessor pads images
    sizes = [(rng.choice(sides), rng.choice(sides)) for _ in range(args.sizes)]
    given = args.file, args.backend, args.threads, args.images, sizes
    if args.processes == 1:
        reports = [in_process(*given, sys.stderr.isatty())]
    else:
        reports = in_processes(args.processes, *given)
    if args.json:
        write_atomically(args.json, json.dumps(reports, indent=1).encode())
    if args.plot:
        plot(reports, args.plot)
    wrong = [text for report in reports for text in verdict(report)]
    if len({report['alone'] for report in reports}) > 1:
        wrong.append('an image alone gives different results in the processes')
    for report in reports:
        print('| images | MiB | open files | threads |\n|---|---|---|---|')
        step = max(1, len(report['samples']) // 10)
        for images, memory, files, threads in [*report['samples'][::step], report['samples'][-1]]:
            print(f'| {images} | {memory:.0f} | {files} | {threads} |')
        print(
            f'{report["images"]} images in {report["seconds"]} s, {report["different"]} different'
        )
    for text in wrong:
        print(f'wrong: {text}')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    run(main)
