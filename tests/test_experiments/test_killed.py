"""The tool itself, killed in the middle without a warning."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def workers(folder: Path) -> list[int]:
    """Processes that do a job of ``folder``."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_bytes().split(b'\0')
        except OSError:
            continue
        if b'mmclipq.experiments.worker' in words and any(
            word.startswith(bytes(folder)) for word in words
        ):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_killed_call_leaves_no_worker_and_the_next_goes_on(digits_root, tmp_path):
    work = tmp_path / 'work'
    options = ['train_cfg.max_epochs=2', 'train_dataloader.batch_size=4']
    for loader in ('train_dataloader', 'val_dataloader'):
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    command = [sys.executable, str(ROOT / 'tools' / 'paper.py'), 'figure8', '--data', 'digits']
    command += ['--seeds', '1', '--detector', 'yolov3', '--work-dir', str(work)]
    command += ['--cfg-options', *options]
    environment = {**os.environ, 'DIGITS_ROOT': str(digits_root), 'PYTHONPATH': str(ROOT)}

    def results() -> list[Path]:
        return sorted(work.glob('runs/*/result.json'))

    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 300
    while not (results() and workers(work)) and time.monotonic() < limit:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (done,) = results()
    before = done.stat().st_mtime_ns
    while workers(work) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not workers(work)

    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    assert len(results()) == 2
    assert done.stat().st_mtime_ns == before
    for result in results():
        assert sorted(json.loads(result.read_text())['curve']) == ['1', '2']
    assert again.stderr.count('start: ') == 1
