"""Installs the configs and the trained networks, which lie beside the package, inside it; setup.cfg cannot say this.

`pretrained` may be missing: then networks are fetched when they are needed (`patterson_jax/releases.py`).
"""

from pathlib import Path

from setuptools import find_packages, setup

BESIDE = [name for name in ('configs', 'pretrained') if (Path(__file__).parent / name).is_dir()]

setup(
    packages=[*find_packages(include=['patterson_jax*']), *(f'patterson_jax.{name}' for name in BESIDE)],
    package_dir={f'patterson_jax.{name}': name for name in BESIDE},
)
