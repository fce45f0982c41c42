"""What was tried of a detector, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

STOCK_STEP, STOCK_PREDICT = 'stock step', 'stock predict'
STAGES = (
    'build',
    STOCK_STEP,
    STOCK_PREDICT,
    'step',
    'convert',
    'load',
    'predict',
    'codes',
    'error',
    'time',
)
"""In order: what fails under a name with 'stock' fails without mmclipq, too."""


@dataclass(frozen=True)
class Settings:
    """How detectors are tried.

    Attributes:
        size: Height and width of the images, unless a detector is made for one size. Those whose
            coarsest level would be too small get two or four times as much.
        images: Number of calibration images; half as many others are predicted on.
        rounds: Timed predictions of each detector.
        threads: Of torch.
        seed: Of weights, images and whatever the detectors draw.
        seconds: Processor time after which a detector is given up; one that waits is given up after
            ten times as long.
        gigabytes: Memory that it may take.
    """

    size: int = 256
    images: int = 4
    rounds: int = 3
    threads: int = 1
    seed: int = 0
    seconds: float = 600.0
    gigabytes: float = 12.0


@dataclass
class Outcome:
    """Of one config.

    Attributes:
        config: Its path as it was given.
        detector: Class of the detector.
        size: Height and width of the images.
        stage: The stage that runs or ran last.
        failures: What went wrong by stage, in a sentence each. A stage that needs one of these was
            not tried.
        loss_difference: Largest relative difference of a loss between the stock step and the step
            after :func:`mmclipq.prepare_model` whose ranges clip nothing.
        gradient_difference: The same of the gradients: largest difference within a parameter over
            the largest gradient of that parameter, or a millionth of the largest of all.
        weights: Weights in the integer graphs, and of all layers that the int8 detector runs.
        operations: Multiply-adds of the integer graphs for one image, and of the whole prediction.
        left: Names of what stays in float by reason.
        backend: What executes the int8 detector.
        against: The backend that its codes are compared with.
        codes: Number of codes compared, and how many of them differ.
        decibels: Signal to noise of the raw outputs against those in float, by head and of all.
        milliseconds: Least processor time of a prediction: in float, and in int8.
        file_bytes: Size of the ``.clipq`` file.
        seconds: Processor time that everything took.
    """

    config: str
    detector: str = ''
    size: int | None = None
    stage: str = ''
    failures: dict[str, str] = field(default_factory=dict)
    loss_difference: float | None = None
    gradient_difference: float | None = None
    weights: tuple[int, int] | None = None
    operations: tuple[int, int] | None = None
    left: dict[str, list[str]] = field(default_factory=dict)
    backend: str = ''
    against: str = ''
    codes: tuple[int, int] | None = None
    decibels: dict[str, float] = field(default_factory=dict)
    milliseconds: tuple[float, float] | None = None
    file_bytes: int | None = None
    seconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether everything went well."""
        return not self.failures

    @property
    def excused(self) -> bool:
        """Whether all that failed, failed without mmclipq, as for lack of a package."""
        missing = ('ImportError: ', 'ModuleNotFoundError: ')
        return bool(self.failures) and all(
            'stock' in stage or stage == 'build' and reason.startswith(missing)
            for stage, reason in self.failures.items()
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Outcome:
        """Inverse of :meth:`as_dict`, also after JSON has made lists of tuples."""
        pairs = ('weights', 'operations', 'codes', 'milliseconds')
        fields: dict[str, Any] = {k: tuple(v) if k in pairs and v else v for k, v in found.items()}
        return cls(**fields)
