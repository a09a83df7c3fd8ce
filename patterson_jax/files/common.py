"""What readers and writers of files have in common: a file is written whole or not at all, a missing one is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from patterson_jax.errors import InputError


def write_json(path: Path, content: dict | list) -> None:
    """Writes a JSON file, indented, with lists of numbers on one line; whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    text = re.sub(r'\[[^][{}"]*\]', lambda match: re.sub(r'\s*\n\s*', ' ', match[0]), text) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the file and renames, so that a file never stands there half written.

    Args:
        path: of the file.
        write: is given the path to write to.
    """
    part = path.with_name(f'.{path.name}.part')
    try:
        write(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
