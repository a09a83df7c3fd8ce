"""What readers and writers of files have in common: a missing one is named, a directory made."""

from pathlib import Path

from patterson_jax.errors import InputError


def require_content(path: Path) -> None:
    """Raises InputError unless there is a file that is not empty."""
    if not path.is_file():
        raise InputError(f'{path}: {"not a file" if path.exists() else "no such file"}')
    if path.stat().st_size == 0:
        raise InputError(f'{path}: the file is empty')


def shortened(text: str, length: int = 60) -> str:
    """The text, cut to so many characters, for messages."""
    return text if len(text) <= length else text[: length - 1] + '…'


def make_directory(path: Path, name: str) -> None:
    """Makes a directory if there is none. Raises InputError, naming what the user called it, if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{name} is {path}; it must be a directory that can be made or written: {error.strerror}'
        ) from error


def plain_name(path: Path) -> str:
    """A file's name without its ending, and without that of gzip: 'map' for map.ccp4.gz."""
    return Path(path.name.removesuffix('.gz')).stem
