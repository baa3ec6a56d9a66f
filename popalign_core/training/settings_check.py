"""What can be wrong with the settings of a training before there is anything to train on. Imports no torch."""

from importlib.util import find_spec

from popalign_core.config import RuntimeConfig, TrainingConfig
from popalign_core.errors import ConfigError


def count_micro_batches(config: TrainingConfig, runtime: RuntimeConfig, n_processes: int) -> int:
    """Forwards a process and step.

    Raises:
        ConfigError: When the pairs do not divide.
    """
    own, rest = divmod(config.n_pairs, n_processes)
    if rest or (runtime.micro_pairs and own % runtime.micro_pairs):
        raise ConfigError(
            f"training.n_pairs is {config.n_pairs}: {n_processes} processes with micro_pairs {runtime.micro_pairs} "
            "do not divide it; choose numbers that do"
        )
    return own // runtime.micro_pairs if runtime.micro_pairs else 1


def check_trackers(runtime: RuntimeConfig) -> None:
    """Raises a ConfigError when a tracker is not installed."""
    for name in runtime.trackers:
        if find_spec(name) is None:
            raise ConfigError(f"runtime.trackers names {name!r}, which is not installed: pip install {name}")


def check_timesteps(config: TrainingConfig, n_timesteps: int) -> None:
    """Raises a ConfigError when timesteps reach beyond the model's."""
    beyond = max((config.min_timestep, *config.timesteps))
    if beyond >= n_timesteps:
        field = "timesteps" if beyond in config.timesteps else "min_timestep"
        raise ConfigError(
            f"training.{field} reaches {beyond}, the model has the timesteps 0 to {n_timesteps - 1}; give less"
        )
