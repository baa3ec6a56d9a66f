"""Where the command `popalign` starts: in a package whose name no other project has.

`flows`, `tasks` and `storage` are words that others use too. One of theirs in front on Python's path would be run in
place of ours, or fail somewhere with an ImportError of its own.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from popalign_core.errors import ConfigError

_COMMON_NAMES = ("flows", "tasks", "storage")
_HOME = Path(__file__).resolve().parents[1]


def start() -> None:
    """Entry point of the command `popalign`."""
    try:
        check_packages()
    except ConfigError as error:
        sys.stderr.write(f"popalign: {error}\n")
        sys.exit(error.exit_code)
    import_module("flows.cli").main()


def check_packages() -> None:
    """Refuse packages of other projects that stand in front of ours; none of them is run.

    Also the step `pull` of the deployments in prefect.yaml, before a worker imports a flow.

    Raises:
        ConfigError: Names the first.
    """
    for name in _COMMON_NAMES:
        found = _place(name)
        if found != _HOME / name:
            raise ConfigError(
                f"the package `{name}` at {found} is not PopAlign's, which is at {_HOME / name}; take "
                f"{found.parent if found else 'it'} off PYTHONPATH and the folder you work in, or uninstall what "
                "brings it"
            )


def _place(name: str) -> Path | None:
    """The folder of a package that an import would take; a module in a file is its own place."""
    spec = find_spec(name)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
    return Path(places[0]).resolve() if places else None
