"""What setup.cfg cannot say: the configs and the trained networks lie beside the package and are installed inside."""

from setuptools import find_packages, setup

BESIDE = ('configs', 'pretrained')

setup(
    packages=[*find_packages(include=['patterson_jax*']), *(f'patterson_jax.{name}' for name in BESIDE)],
    package_dir={f'patterson_jax.{name}': name for name in BESIDE},
)
