"""Tables of figures in Markdown: columns by key, three digits a number."""

from collections.abc import Iterable, Mapping

from patterson_jax.writing import markdown_table


def number(value: object) -> str:
    """A value as a table shows it: three digits of a float, a dash for None."""
    if value is None:
        return '–'
    if not isinstance(value, float):
        return str(value)
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def aligned_table(columns: Mapping[str, str], rows: Iterable[Mapping]) -> str:
    """A Markdown table that is aligned for readers of the plain text.

    Args:
        columns: the heading of each column, by the key of its values.
        rows: values by key; a missing value is shown as a dash.
    """
    cells = [[number(row.get(key)) for key in columns] for row in rows]
    return markdown_table(tuple(columns.values()), cells, aligned=True)
