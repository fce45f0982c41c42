"""A forward with assertions as Python compiles them: pytest rewrites those of test modules."""


def of_four_axes(x, channels):
    """``x`` if it has four axes and that many channels."""
    assert x.shape[1] == channels
    assert not x.shape[1] != channels and x.dim() == 4, 'channels'  # noqa: PT018, SIM202
    return x
