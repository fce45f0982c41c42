"""The error that tells a user in one sentence what was found, what was wanted, what to do."""


class ClipQError(ValueError):
    """Input that mmclipq cannot work with; the tools print it without a traceback."""


def first_line(error: BaseException, most: int | None = 200) -> str:
    """What an error of a library says first, to be part of a sentence; its type if it says nothing.

    Args:
        error: The error.
        most: Characters that are kept; None for all.
    """
    return (str(error).strip() or type(error).__name__).split('\n')[0][:most]


def cannot_write(path: object, error: OSError) -> ClipQError:
    """The error for a file that the system does not let be written."""
    reason = error.strerror or str(error)
    return ClipQError(f'{path}: found {reason}, wanted a place to write to')
