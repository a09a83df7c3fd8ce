"""Hooks of mkdocs: pages link to files outside of docs/, which the site must include."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
TAKEN = (
    'pretrained/*/README.md',
    'pretrained/*/figures/*.png',
    'benchmarks/*.png',
    *('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'CITATION.cff', 'LICENSE'),
)


def on_files(files, config):
    """Adds the files beside docs/ that pages link to, at the same place below `repository/`."""
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            place = f'repository/{path.relative_to(ROOT).as_posix()}'
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Adapts links from docs/ to those files, and from those files to docs/."""
    depth = page.file.src_uri.count('/')
    if page.file.src_uri.startswith('repository/'):
        return re.sub(r'\]\((?:\./)?' + r'\.\./' * (depth - 1) + 'docs/', '](' + '../' * depth, markdown)
    return re.sub(r'\]\(' + r'\.\./' * (depth + 1), '](' + '../' * depth + 'repository/', markdown)
