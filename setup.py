"""Installs the configs and the trained networks, which lie beside the package, inside it; setup.cfg cannot say this."""

from setuptools import find_packages, setup

BESIDE = ('configs', 'pretrained')

setup(
    packages=[*find_packages(include=['patterson_jax*']), *(f'patterson_jax.{name}' for name in BESIDE)],
    package_dir={f'patterson_jax.{name}': name for name in BESIDE},
)
