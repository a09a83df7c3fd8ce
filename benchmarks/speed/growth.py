"""The training step against grid size, channels and batch size."""

from benchmarks.speed.cells import Cells, Settings

FIXED_BATCH = 2  # of the series over grids and channels
SERIES = {'grid': (16, 24, 32, 40, 48, 64), 'channels': (8, 16, 20, 32, 64), 'batch': (1, 2, 4, 8, 16)}
COLUMNS = {
    'series': 'series',
    'grid': 'grid',
    'channels': 'channels',
    'batch': 'batch',
    'seconds_per_example': 's/example',
    'memory_mb': 'memory, MB',
    'compile_seconds': 'compile, s',
}


def growth_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Our training step against grid size, channels and batch."""
    largest = {'grid': settings.grid, 'channels': settings.features, 'batch': max(settings.batches)}
    fixed = {'grid': machine['grid'], 'channels': machine['features'], 'batch': min(FIXED_BATCH, largest['batch'])}
    rows = []
    for series, every in SERIES.items():
        values = [each for each in every if largest[series] is None or each <= largest[series]]
        for value in values or [largest[series]]:
            sizes = fixed | {series: value}
            given = {'grid': sizes['grid'], 'features': sizes['channels'], 'batch': sizes['batch'], 'forward': False}
            found = cells.run(f'growth, {series} {value}', 'network', **given)
            row = {'series': series} | sizes
            if found:
                row |= {'seconds_per_example': found['step']['best'] / sizes['batch']}
                row |= {'memory_mb': found['step'].get('memory'), 'compile_seconds': found['step']['compile']}
            rows.append(row)
    return {'rows': rows, 'notes': []}
