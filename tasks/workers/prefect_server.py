"""The configured Prefect server: a check that it answers before work begins, and readable errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from popalign_core.errors import ConfigError, PopAlignError, ServiceError

_UNREACHED = ("Failed to reach API", "Found incompatible versions")


def server_url() -> str | None:
    """The address in `PREFECT_API_URL`, or in Prefect's profile; None where there is none.

    Raises:
        ConfigError: When Prefect cannot read its settings.
    """
    try:
        from prefect.settings import PREFECT_API_URL

        return PREFECT_API_URL.value() or None
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Prefect cannot read its settings ({reason:.200}); correct the variables PREFECT_..., or "
            "profiles.toml in $PREFECT_HOME (~/.prefect)"
        ) from error


def check_server() -> None:
    """Ask the configured server whether it is there.

    Raises:
        ServiceError: When it does not answer, or is of another major version.
    """
    from prefect.client.orchestration import get_client

    with server_errors(), get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise problem
        client.raise_for_api_version_mismatch()


@contextmanager
def server_errors() -> Iterator[None]:
    """Turn what Prefect's client says of a server that does not answer into a `ServiceError`."""
    from httpx import HTTPError, InvalidURL

    try:
        yield
    except PopAlignError:
        raise
    except (HTTPError, InvalidURL, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError | ValueError) and not str(error).startswith(_UNREACHED):
            raise
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> ServiceError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return ServiceError(
        f"the Prefect server at PREFECT_API_URL {server_url()} does not answer as one ({reason:.200}); start it with "
        "`prefect server start`, or unset PREFECT_API_URL: without --prefect no server is needed"
    )
