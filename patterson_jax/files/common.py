"""Helpers that readers and writers of files share."""

from pathlib import Path

from patterson_jax.errors import InputError


def require_content(path: Path) -> None:
    """Raises InputError if a file does not exist or is empty."""
    if not path.is_file():
        raise InputError(f'{path}: {"not a file" if path.exists() else "no such file"}')
    if path.stat().st_size == 0:
        raise InputError(f'{path}: the file is empty')


def shortened(text: str, length: int = 60) -> str:
    """A text cut to `length` characters, for messages."""
    return text if len(text) <= length else text[: length - 1] + '…'


def make_directory(path: Path, name: str) -> None:
    """Makes a directory unless it exists. Raises InputError if that fails; `name` is the user's name for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{name} is {path}; it must be a directory that can be made or written: {error.strerror}'
        ) from error


def plain_name(path: Path) -> str:
    """A file's name without its ending and without .gz: 'map' for map.ccp4.gz."""
    return Path(path.name.removesuffix('.gz')).stem
