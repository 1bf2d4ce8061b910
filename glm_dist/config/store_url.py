"""Rules for ``checkpoint.url``; nothing is opened and no library is loaded."""

import re

from glm_dist.errors import ConfigError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/]", re.IGNORECASE)
_FILE = re.compile(r"(file|local|memory):///", re.IGNORECASE)


def check_url(url: str | None) -> None:
    """Refuse what is no URL of a folder, and one that carries credentials.

    Credentials in a URL would end up in logs, in ``config.yaml`` and at Weights & Biases. The
    message does not repeat them.

    Args:
        url: ``checkpoint.url``; None: unset.

    Raises:
        ConfigError: It cannot be used.
    """
    if url is None:
        return
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority:
        protocol, _, rest = url.partition("://")
        bare = f"{protocol}://{rest.partition('@')[2]}"
        raise _refused(
            f"{protocol}://***@{rest.partition('@')[2].partition('?')[0]}",
            "has a user or password in it",
            f"Set checkpoint.url={bare.partition('?')[0]}, and give credentials by the environment"
            " or the files of the store's own tools.",
        )
    if "?" in url or "#" in url:
        shown = re.split("[?#]", url)[0]
        raise _refused(
            f"{shown}?***",
            "has parameters in it, which may be credentials",
            f"Set checkpoint.url={shown}.",
        )
    if "::" in url or not (_URL.match(url) or _FILE.match(url)):
        raise _refused(
            url,
            "is not the URL of a folder",
            "Set checkpoint.url=s3://<bucket>/<folder>, gs://<bucket>/<folder> or"
            " file:///<folder>, or checkpoint.url=null.",
        )


def _refused(shown: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"checkpoint.url={shown} {problem}.\n  {remedy}",
        key="checkpoint.url",
        value=shown,
        fix=remedy.partition(", ")[0].removeprefix("Set ").rstrip("."),
    )
