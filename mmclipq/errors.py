"""The error that tells a user in one sentence what was found, what was wanted, what to do."""


class ClipQError(ValueError):
    """Input that mmclipq cannot work with; the tools print it without a traceback."""
