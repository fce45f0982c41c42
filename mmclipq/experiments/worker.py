"""Does one job in a process of its own: ``python -m mmclipq.experiments.worker FOLDER``."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import DESCRIPTION, RESULT, job_config, write


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone; on Linux alone."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def do(folder: Path) -> dict[str, Any]:
    """Do the job described in ``folder``; returns what it found."""
    job = json.loads((folder / DESCRIPTION).read_text())
    cfg, content = job_config(job['config']), job['content']
    needs = [Path(path) for path in job['needs'].values()]
    begin = time.perf_counter()
    found: Mapping[str, Any]
    if job['kind'] == 'train':
        from .training import train

        found = train(cfg, content, folder, needs)
    elif job['kind'] == 'measure':
        from .measuring import measure

        found = measure(cfg, content, folder, needs[0])
    else:
        from .timing import time_rows

        found = time_rows(cfg, {n: folder.parent / f for n, f in content['rows'].items()})
    return {'key': job['key'], **found, 'seconds': time.perf_counter() - begin}


def main() -> None:
    end_with_parent()
    import torch

    # Fresh deep networks meet denormal numbers, on which a CPU is several times slower.
    torch.set_flush_denormal(True)
    folder = Path(sys.argv[1])
    write(folder / RESULT, do(folder))


if __name__ == '__main__':
    main()
