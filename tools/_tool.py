"""How every tool here begins and ends.

A tool imports heavy packages inside its ``main`` alone: ``--help`` and mistakes in the arguments
then cost no time, and the seconds that imports take can be interrupted, too.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable


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
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print('interrupted; nothing half-written was left', file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        # A mistake of the user is known as one only where mmclipq has been imported.
        errors = sys.modules.get('mmclipq.errors')
        if errors is None or not isinstance(error, errors.ClipQError):
            raise
        sys.exit(f'error: {error}')
