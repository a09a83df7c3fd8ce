"""Files that are written whole or not at all."""

import json
import re
from collections.abc import Callable
from pathlib import Path


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
