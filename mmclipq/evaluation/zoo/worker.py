"""Measures one detector in a process of its own: ``python -m ...zoo.worker JSON``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ...errors import ClipQError
from ...graph.writing import write_atomically
from .entries import Entry

ROW, FAILURE = 'row.json', 'failure.txt'


def main(job: dict[str, Any]) -> None:
    """Measure ``job['entry']`` and write its row, or why there is none, into ``job['folder']``."""
    import torch

    from .measure import measure

    folder = Path(job['folder'])
    torch.set_num_threads(job['threads'])
    try:
        row = measure(
            Entry(**job['entry']), folder, Path(job['downloads']), job['data_root'],
            job['calib_images'],
        )  # fmt: skip
    except ClipQError as error:
        write_atomically(folder / FAILURE, str(error).encode())
        sys.exit(1)
    text = json.dumps({'key': job['key'], **row.as_dict()}, indent=1) + '\n'
    write_atomically(folder / ROW, text.encode())


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
