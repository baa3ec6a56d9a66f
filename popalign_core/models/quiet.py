"""What the libraries below print of themselves, turned down once for a process and for those that it starts.

Bars, advice and notices go; errors stay, and so do this project's own warnings. A variable that is set already wins:
`TRANSFORMERS_VERBOSITY=info popalign run` says everything.
"""

import logging
import os
import sys

VARIABLES = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "DEEPFACE_LOG_LEVEL": str(logging.ERROR),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "DASK_LOGGING__DISTRIBUTED": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray shall do in future; without, it warns that it will
}
"""Read when a library is imported."""

LOGGERS = ("bitsandbytes",)
"""Of libraries that read no variable."""

PREFECT_CONSOLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def be_quiet() -> None:
    """Turn the libraries down; called before any of them is imported."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def hide_prefects_console() -> None:
    """Where Prefect is only a means, its account of flow runs is not printed; a program that runs flows keeps it."""
    if "prefect" not in sys.modules:
        os.environ.setdefault(PREFECT_CONSOLE, "WARNING")
