"""Stands in for the process of a job."""


class Done:
    """A process that has ended."""

    def __init__(self, code=0):
        self.code = code

    def poll(self):
        return self.code

    def terminate(self):
        pass

    def wait(self):
        return self.code
