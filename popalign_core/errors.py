"""One tree of errors. A message says what is wrong, the value, and what to do."""

from typing import Self


class PopAlignError(Exception):
    """Root of every error this project raises on purpose.

    Attributes:
        exit_code: What the command line exits with.
        stage: Stage and key the error belongs to, attached at the task border, or None.
        may_pass: Whether the same work may succeed later: a network, a service, a worker that was lost.
    """

    exit_code = 1
    stage: str | None = None
    may_pass: bool = False

    def __str__(self) -> str:
        message = super().__str__()
        return f"[{self.stage}] {message}" if self.stage else message

    def passing(self, may_pass: bool = True) -> Self:
        """The same error, with what is known of another try."""
        self.may_pass = may_pass
        return self


class ConfigError(PopAlignError):
    """The configuration, a preset's name or a command-line value is wrong."""

    exit_code = 2


class InputError(PopAlignError):
    """Data handed to a stage is wrong: prompts, images, labels."""

    exit_code = 3


class MissingWeightsError(PopAlignError):
    """Model weights are not where they should be."""

    exit_code = 4


class DamagedWeightsError(MissingWeightsError):
    """Weights, a configuration or a vocabulary are there, but not whole, or do not fit each other."""


class StoreError(PopAlignError):
    """The artifact store cannot be read or written, or an artifact is damaged."""

    exit_code = 5


class TrainingError(PopAlignError):
    """Training cannot go on."""

    exit_code = 6


class DivergedError(TrainingError):
    """A loss or a gradient is not finite, or the preferred error runs away."""


class PreemptedError(PopAlignError):
    """SIGTERM came while training: all is saved, and the same command goes on."""

    exit_code = 143


class ServiceError(PopAlignError):
    """A service that a stage needs (an LLM endpoint, a Prefect server) does not answer as it should."""

    exit_code = 7


class ThresholdMissedError(PopAlignError):
    """A model misses a threshold of `popalign check`."""

    exit_code = 9


class ResourceError(PopAlignError):
    """The machine is too small: memory runs out at a batch of one, or workers keep dying."""

    exit_code = 8
