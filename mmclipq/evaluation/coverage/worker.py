"""Tries one detector in a process of its own: ``python -m ...coverage.worker JSON``."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path

from ...graph.writing import write_atomically
from .outcome import Outcome, Settings


def main(job: dict) -> None:
    """Try ``job['config']`` and write the outcome, stage by stage, into ``job['folder']``."""
    settings, folder = Settings(**job['settings']), Path(job['folder'])
    limit = int(settings.gigabytes * 2**30)
    # Private memory that can be written; code and files that are mapped do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seconds = math.ceil(settings.seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))

    from .trial import Trial

    def report(outcome: Outcome) -> None:
        write_atomically(folder / 'outcome.json', json.dumps(outcome.as_dict()).encode())

    Trial(job['config'], settings, folder, report).run()


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
