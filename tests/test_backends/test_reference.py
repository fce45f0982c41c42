"""The reference backend, and the one that multiplies values instead of codes."""

from conformance import BackendConformance


class TestReference(BackendConformance):
    backend = 'reference'


class TestSimulated(BackendConformance):
    backend = 'simulated'
