"""The password in a database's URL, kept out of what is printed."""

import re
from urllib.parse import unquote


def hide_password(url: str, text: str | None = None) -> str:
    """A URL without its password, or a text about it, whether the URL can be parsed or not."""
    text, found = url if text is None else text, re.search(r"://[^/@]*?:(.+)@", url)
    return text.replace(found[1], "***").replace(unquote(found[1]), "***") if found else text
