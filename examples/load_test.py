#!/usr/bin/env python
"""Ask a server of examples/serve.py with rising load: requests a second, latency, memory.

So many clients ask at once, each again as soon as it has its answer. Memory is the resident one of
the server's process and of those that it started, read from /proc (Linux).
"""

import argparse
import base64
import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUFFIXES = '.jpg', '.jpeg', '.png'


def ask(port: int, bodies: Sequence[bytes], end: float) -> list[float]:
    """Seconds of each request of one client until ``end``.

    Raises:
        RuntimeError: for an answer that is none.
    """
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    times: list[float] = []
    while (start := time.perf_counter()) < end:
        body = bodies[len(times) % len(bodies)]
        connection.request('POST', '/predict', body, {'Content-Type': 'application/json'})
        response = connection.getresponse()
        found = json.loads(response.read())
        if response.status != 200 or 'bboxes' not in found:
            raise RuntimeError(f'found answer {response.status} {found}, wanted boxes')
        times.append(time.perf_counter() - start)
    connection.close()
    return times


def family(process: int) -> list[int]:
    """A process and all that it started."""
    parents = {}
    for folder in Path('/proc').iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / 'stat').read_text().rsplit(')')[-1].split()[1]
                )
            except OSError:  # it ended
                continue
    found = [process]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def memory(process: int) -> float:
    """MiB that are resident, shared pages counted by their share."""
    total = 0
    for member in family(process):
        try:
            lines = (Path('/proc') / str(member) / 'smaps_rollup').read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith('Pss:'))
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', type=Path, help='folder')
    parser.add_argument('--port', type=int, default=8000, help='(default: 8000)')
    parser.add_argument('--clients', default='1,2,4,8,16', help='(default: 1,2,4,8,16)')
    parser.add_argument('--seconds', type=float, default=10, help='of each load (default: 10)')
    parser.add_argument('--server', type=int, help="number of the server's process")
    args = parser.parse_args()
    files = sorted(p for p in args.images.iterdir() if p.suffix.lower() in SUFFIXES)[:64]
    bodies = [
        json.dumps({'image': base64.b64encode(p.read_bytes()).decode()}).encode() for p in files
    ]
    ask(args.port, bodies[:8], time.perf_counter() + 2)  # plans the graph for these sizes
    print('| clients | requests/s | median, ms | 99 %, ms | memory, MiB |\n|---|---|---|---|---|')
    for clients in map(int, args.clients.split(',')):
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            asked = [
                pool.submit(ask, args.port, bodies[i:] + bodies[:i], start + args.seconds)
                for i in range(clients)
            ]
            times = sorted(t for future in asked for t in future.result())
        speed = len(times) / (time.perf_counter() - start)
        median, slow = (1000 * times[int(len(times) * part)] for part in (0.5, 0.99))
        used = f'{memory(args.server):.0f}' if args.server else ''
        print(f'| {clients} | {speed:.0f} | {median:.1f} | {slow:.1f} | {used} |', flush=True)


if __name__ == '__main__':
    main()
