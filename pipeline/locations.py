"""Folders of shards: on this machine, or on an object store or a web server by their URL."""

from pathlib import Path
from typing import Any, cast

import click


def location(text: str) -> Path:
    """The folder that `text` names: a path, or a URL that fsspec knows (s3://bucket/folder).

    What comes back for a URL has pathlib's interface, by universal_pathlib. ValueError where a
    package that the URL needs is not installed.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme in ("file", "local"):  # a folder, with all that one has: a lock, renames, sizes
        return Path(rest)
    try:
        from upath import UPath

        place = UPath(text, **_options(text))
        place.fs  # noqa: B018  # loads the package for this kind of URL
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{text} cannot be opened ({error}); s3:// needs: pip install 'fullfeed[s3]', "
            "https:// 'fullfeed[https]', gs:// gcsfs and universal_pathlib, others their own "
            "fsspec package"
        ) from error
    return cast(Path, place)


def _options(text: str) -> dict[str, Any]:
    """What the store's own defaults would have wrong."""
    if not text.startswith(("http://", "https://")):
        return {}
    import aiohttp

    # It would end every transfer after five minutes, however large; those that stall are ended
    # by pipeline/transfer.py.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}


class Location(click.ParamType[Path]):
    """A command-line argument that names a folder, here or on an object store."""

    name = "folder"

    def convert(
        self, value: str | Path, param: click.Parameter | None, context: click.Context | None
    ) -> Path:
        """The folder; a usage error where it cannot be opened."""
        if not isinstance(value, str):
            return value
        try:
            return location(value)
        except ValueError as error:
            self.fail(str(error), param, context)
