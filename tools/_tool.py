"""How every tool here begins and ends.

A tool imports heavy packages inside its ``main`` alone: ``--help`` and mistakes in the arguments
then cost no time, and the seconds that imports take can be interrupted, too.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def run(main: Callable[[list[str]], None]) -> None:
    """Call ``main`` with the arguments of the command line, without warnings that are for others.

    What ends it early is told in one line, without a traceback: a
    :class:`~mmclipq.errors.ClipQError` (the process then exits with 1) and Ctrl-C (130).
    """
    if not sys.warnoptions:
        # Calls that MMEngine, MMCV and MMDetection will have to change one day.
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter('ignore', category)
        warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
        # Of onedl-mmdetection, for an evaluation that nobody here has asked for.
        warnings.filterwarnings('ignore', module='mmdet.evaluation.metrics.faster_coco_metric')
    try:
        with _noted_interruptions() as interruptions:
            main(sys.argv[1:])
    except BaseException as error:
        # Modules in C turn an interruption of their import into errors of their own.
        if interruptions or isinstance(error, KeyboardInterrupt):
            print('interrupted; nothing half-written was left', file=sys.stderr)
            sys.exit(130)
        # A mistake of the user is known as one only where mmclipq has been imported.
        errors = sys.modules.get('mmclipq.errors')
        if errors is None or not isinstance(error, errors.ClipQError):
            raise
        sys.exit(f'error: {error}')


@contextmanager
def _noted_interruptions() -> Iterator[list[int]]:
    """Inside, Ctrl-C is noted in the list that this gives, and is not lost.

    An interruption that comes in a callback of the interpreter, or in an import that a library does
    without if it fails, goes no further. So it is looked for, and sent again.
    """
    noted: list[int] = []
    main, running = threading.get_ident(), True

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        timer = threading.Timer(1.0, send_again)
        timer.daemon = True
        timer.start()
        signal.default_int_handler(number, frame)

    def send_again() -> None:
        # More than one look, since on a busy machine the main thread may not have run since then.
        for _ in range(10):
            if not running or _is_interrupted(main):
                return
            time.sleep(0.05)
        # Sent to the main thread, so that a call of the system which it waits in ends.
        signal.pthread_kill(main, signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        running = False
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_interrupted(thread: int) -> bool:
    """Whether a thread is on its way out because of an interruption, and cleans up."""
    found = sys._current_exceptions().get(thread)
    error = found[1] if isinstance(found, tuple) else found
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
