"""Writes files whole or not at all, makes tables in Markdown, and names the user's cache directory."""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def write_json(path: Path, content: dict | list) -> None:
    """Writes a JSON file whole or not at all, indented, with lists of numbers on one line.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    text = re.sub(r'\[[^][{}"]*\]', lambda match: re.sub(r'\s*\n\s*', ' ', match[0]), text) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name and then renames it, so that it is never half written.

    Args:
        path: of the file.
        write: a function that writes to the path that it is given.
    """
    part = path.with_name(f'.{path.name}.part')
    try:
        write(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def user_cache_directory() -> Path:
    """The directory for what this program keeps between runs: `patterson_jax` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: there is no home directory.
    """
    caches = Path(os.environ.get('XDG_CACHE_HOME', ''))
    if not caches.is_absolute():  # the XDG base directory specification says to ignore it then
        caches = Path.home() / '.cache'
    return caches / 'patterson_jax'


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]], aligned: bool = False) -> str:
    """A table in Markdown.

    Args:
        head: headings of the columns.
        rows: cells.
        aligned: whether to pad cells so that they stand at the right of equally wide columns.
    """
    lines = [[str(cell) for cell in line] for line in (head, *rows)]
    rule = ['---'] * len(lines[0])
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [list(map(str.rjust, line, widths)) for line in lines]
        rule = ['-' * (width - 1) + ':' for width in widths]
    lines.insert(1, rule)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
