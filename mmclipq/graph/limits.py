"""How much memory and work a file may ask for, in one place.

The defaults hold every detector of MMDetection with room to spare. Another limit is given as
``load_int8(path, limits=Limits(work=1e13))``, or for every tool in the environment::

    MMCLIPQ_LIMITS='work=1e13 memory=8e9'
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from ..errors import ClipQError

VARIABLE = 'MMCLIPQ_LIMITS'
"""Environment variable with limits that differ from the defaults."""


class LimitError(ClipQError):
    """A file that asks for more than the limits allow."""


@dataclass(frozen=True)
class Limits:
    """The most that a file may ask for.

    Attributes:
        file: Bytes of the file.
        header: Bytes of its JSON header, which take up to thirty times as much memory once read.
        content: Bytes of its constants and parameters, unpacked.
        codes: Codes that are entropy coded, 30 ns each on one core.
        nodes: Nodes of each of its graphs; planning takes time with their square.
        graphs: Its graphs.
        model: Bytes of the weights of the detector that its config describes, in float32.
        modules: Modules of that detector.
        pixels: Pixels of the image that its test pipeline makes.
        memory: Bytes of the tensors that are alive at once while a graph runs on such an image,
            codes as bytes; a backend may need eight times as much for what it keeps beside them.
        work: Multiplications, or other steps per value, of a graph on such an image.
    """

    file: float = 2**31
    header: float = 2**24
    content: float = 2**32
    codes: float = 2**29
    nodes: float = 2**13
    graphs: float = 2**10
    model: float = 2**33
    modules: float = 2**16
    pixels: float = 2**24
    memory: float = 2**32
    work: float = 2**42

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, with what :data:`VARIABLE` changes.

        Raises:
            ClipQError: if the variable holds anything but ``NAME=NUMBER`` for names above.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        changed = {}
        for entry in os.environ.get(VARIABLE, '').replace(',', ' ').split():
            name, _, text = entry.partition('=')
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if name not in names or not value > 0:
                raise ClipQError(
                    f'{VARIABLE}: found {entry!r}, wanted NAME=NUMBER with one of {names}'
                )
            changed[name] = value
        return cls(**changed)

    def check(self, name: str, value: float, who: str) -> None:
        """Return if ``value`` is within the limit called ``name``.

        Args:
            name: One of the attributes.
            value: What is asked for.
            who: What asks for it, with which the error's sentence begins.

        Raises:
            LimitError: telling how to raise the limit.
        """
        limit = getattr(self, name)
        if value > limit:
            raise LimitError(
                f'{who}: found {name} of {value:.4g}, wanted at most {limit:.4g}; if you trust '
                f'the file, set {VARIABLE}="{name}={value:.2g}" or more'
            )
