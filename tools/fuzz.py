#!/usr/bin/env python
"""Load damaged .clipq files with right checksums: each must end in a working detector or an error.

Every file is made from a tiny seed by its number, so a finding can be made again with --first.
Files run in a process of their own: one that dies, takes too long or too much memory is a finding,
too. With --exports the files are exported ones (.onnx, .xml with .bin), read with ONNX Runtime and
OpenVINO; a runtime that dies is told and is no finding, because mmclipq cannot keep it from that.
With --atheris the choice of changes is guided by what the loader's code has covered (pip
install atheris).
"""

import argparse
import collections
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _tool import run

SECONDS, MEGABYTES = 60.0, 3072
"""Most that one file may take. Memory counts what the process needs beyond its libraries."""
ADDRESSES = 16 << 30
"""Most bytes of addresses for a process that reads exported files; runtimes know no limits."""
LIMITS = 'memory=3e8 work=2e10 content=3e8 model=3e8 header=2e6 pixels=1e6'
"""Limits on what a file may ask for, so that a run on a small machine meets them."""


def outcome(path: Path, backend: str) -> str:
    """``'works'``, ``'refused'`` or a finding that begins with an exclamation mark."""
    import torch

    import mmclipq
    from mmclipq.detector import plain_samples
    from mmclipq.errors import ClipQError

    stage = 'load'
    try:
        detector = mmclipq.load_int8(path, backend=backend)
        stage = 'predict'
        images = torch.rand(1, 3, 64, 64)
        detector.predict(images, plain_samples(images))
    except ClipQError as error:
        text = str(error)
        if stage == 'predict':
            return f'!late {text}'
        if '\n' in text or not text.startswith(str(path)):
            return f'!no sentence {text}'
        return 'refused'
    except Exception as error:
        return f'!{stage} {type(error).__name__}: {error}'
    return 'works'


def exported_outcome(path: Path) -> str:
    """Like :func:`outcome` of an exported file; what its runtime finds may come with an image."""
    import torch

    from mmclipq.apis.exported_detector import load_exported
    from mmclipq.detector import plain_samples
    from mmclipq.errors import ClipQError

    stage = 'load'
    try:
        detector = load_exported(path)
        stage = 'predict'
        images = torch.rand(1, 3, 64, 64)
        detector.predict(images, plain_samples(images))
    except ClipQError as error:
        text = str(error)
        if '\n' in text or not text.startswith(str(path)):
            return f'!no sentence {text}'
        return 'refused' if stage == 'load' else 'refused with an image'
    except Exception as error:
        return f'!{stage} {type(error).__name__}: {error}'
    return 'works'


def make(seeds: list, number: int, path: Path) -> str:
    """Write file ``number``; returns the backend to run it on."""
    from _mutants import mutant
    from _seeds import write_signed

    rng = random.Random(number)
    write_signed(path, *mutant(rng.choice(seeds), rng))
    return rng.choice(('cpu', 'cpu', 'reference'))


def work(folder: Path, first: int, count: int, exports: bool = False) -> None:
    """Run files and print one JSON line for each; called in a process of its own."""
    import torch
    from _mutants import Content
    from _seeds import make_seeds

    import mmclipq  # noqa: F401

    torch.set_num_threads(1)
    quiet()
    if not (folder / 'seeds').is_dir():
        make_seeds(folder / 'seeds')
    files = sorted((folder / 'seeds').glob('*.clipq'))
    path = folder / 'mutant.clipq'
    if exports:
        from _export_mutants import make_exports, write_mutant

        with_boxes = [file for file in files if file.stem in ('retina', 'two_stage')]
        made = make_exports(folder / 'exports', with_boxes)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

        def one(number: int) -> str:
            rng = random.Random(number)
            return exported_outcome(write_mutant(rng.choice(made), rng, folder))
    else:
        seeds = [Content(file) for file in files]

        def one(number: int) -> str:
            return outcome(path, make(seeds, number, path))

    for number in range(first, first + count):
        print(json.dumps([number]), flush=True)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        found = one(number)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        seconds = time.perf_counter() - start
        if grown > MEGABYTES:
            found = f'!memory {grown:.0f} MiB, {found}'
        print(json.dumps([number, found.split('\n')[0][:300], round(seconds, 3)]), flush=True)


def quiet() -> None:
    """Keep progress bars and log lines of thousands of files out of the output."""
    import logging
    import warnings

    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)


class Worker:
    """A process that runs files from ``first`` on."""

    def __init__(self, folder: Path, first: int, count: int, exports: bool = False) -> None:
        command = [sys.executable, '-W', 'ignore', __file__, '--folder', str(folder)]
        command += ['--first', str(first), '--count', str(count), '--worker']
        command += ['--exports'] if exports else []
        environment = {**os.environ, 'MMCLIPQ_LIMITS': LIMITS}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdout is not None
        self.output, self.rest = self.process.stdout, b''

    def line(self, seconds: float) -> list | None:
        """The next line, or None if the process ended or did not answer."""
        waited = 0.0
        while b'\n' not in self.rest:
            begin = time.monotonic()
            ready, _, _ = select.select([self.output], [], [], min(1.0, seconds - waited))
            if not ready:
                # A second counts as one, however long both processes were stopped in it.
                waited += min(1.0, time.monotonic() - begin)
                if waited >= seconds:
                    return None
                continue
            part = os.read(self.output.fileno(), 1 << 16)
            if not part:  # its end: so is the process at an end, or about to be
                self.process.wait(10)
                return None
            self.rest += part
        line, _, self.rest = self.rest.partition(b'\n')
        try:
            return json.loads(line)
        except ValueError:  # something else that a library printed
            return self.line(seconds)


def campaign(
    folder: Path, first: int, count: int, show: bool, exports: bool = False
) -> collections.Counter:
    """Run ``count`` files; returns how many ended how, and prints each finding."""
    from tqdm import tqdm

    ends: collections.Counter = collections.Counter()
    number, last, slowest = first, first + count, 0.0
    with tqdm(total=count, desc='files', unit='file', disable=not show) as bar:
        while number < last:
            worker, begun = Worker(folder, number, last - number, exports), False
            while number < last:
                # The first line comes after the imports and the making of the seeds.
                answer = worker.line(SECONDS if begun else 600.0)
                if answer is None:
                    code = worker.process.poll()
                    report = f'!ended with {code}' if code is not None else '!too slow'
                    if not begun:
                        sys.exit(f'error: the worker does not start ({report[1:]})')
                    if exports:
                        report = f'runtime {report[1:]}'
                    answer = [number, report, SECONDS]
                begun = True
                if len(answer) == 1:
                    continue
                number = answer[0] + 1
                bar.update()
                slowest = max(slowest, answer[2])
                end = answer[1].split(' ')[0]
                ends[end] += 1
                if not show and sum(ends.values()) % 5000 == 0:
                    print(f'{sum(ends.values())} files', flush=True)
                if end.startswith(('!', 'runtime')):
                    tqdm.write(f'file {answer[0]}: {answer[1]}')
                if worker.process.poll() is not None or end in ('!ended', '!too', 'runtime'):
                    break
            worker.process.kill()
            worker.process.wait()
    print(f'slowest {slowest:.1f} s')
    return ends


def guided(folder: Path, seconds: int) -> None:
    """Let atheris choose the changes by the coverage of the loader."""
    import atheris

    with atheris.instrument_imports(include=['mmclipq.graph', 'mmclipq.apis', 'mmclipq.detector']):
        import mmclipq.apis.int8_file
        import mmclipq.graph.inference  # noqa: F401
    from _mutants import Content, mutant
    from _seeds import make_seeds, write_signed

    os.environ['MMCLIPQ_LIMITS'] = LIMITS
    quiet()
    if not (folder / 'seeds').is_dir():
        make_seeds(folder / 'seeds')
    seeds = [Content(path) for path in sorted((folder / 'seeds').glob('*.clipq'))]
    path = folder / 'guided.clipq'

    class Chooser(random.Random):
        """Takes its numbers from the fuzzer's bytes, then from a fixed sequence."""

        def __init__(self, data: bytes) -> None:
            super().__init__(0)
            self.provider = atheris.FuzzedDataProvider(data)

        def random(self) -> float:
            return self.provider.ConsumeIntInRange(0, 2**32 - 1) / 2**32

        def getrandbits(self, k: int) -> int:
            return self.provider.ConsumeIntInRange(0, 2**k - 1) if k <= 64 else 0

    def one(data: bytes) -> None:
        rng = Chooser(data)
        try:
            write_signed(path, *mutant(rng.choice(seeds), rng))
        except RecursionError:
            return
        found = outcome(path, 'cpu')
        if found.startswith('!'):
            raise AssertionError(found)

    corpus = folder / 'corpus'
    corpus.mkdir(exist_ok=True)
    for index in range(32):
        (corpus / f'start{index}').write_bytes(random.Random(index).randbytes(64))
    atheris.Setup(
        [sys.argv[0], str(corpus), f'-max_total_time={seconds}', f'-timeout={SECONDS:.0f}',
         '-rss_limit_mb=6000', f'-artifact_prefix={folder}/finding-'], one,
    )  # fmt: skip
    atheris.Fuzz()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=1000, help='number of files (default: 1000)')
    parser.add_argument('--first', type=int, default=0, help='number of the first (default: 0)')
    parser.add_argument('--folder', help='where seeds and files go (default: a temporary one)')
    parser.add_argument('--exports', action='store_true', help='exported files instead')
    parser.add_argument('--atheris', type=int, metavar='SECONDS', help='fuzz by coverage instead')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error(f'--count: found {args.count}, wanted at least 1')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.worker:
            work(folder, args.first, args.count, args.exports)
        elif args.atheris:
            guided(folder, args.atheris)
        else:
            ends = campaign(folder, args.first, args.count, sys.stderr.isatty(), args.exports)
            print(', '.join(f'{count} {end}' for end, count in ends.most_common()))
            sys.exit(1 if any(end.startswith('!') for end in ends) else 0)


if __name__ == '__main__':
    run(main)
