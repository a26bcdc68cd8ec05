"""The packages, found: the folders compat and kernels are capgate.compat and capgate.kernels, with all in them."""

from setuptools import find_packages, setup

setup(packages=[f"capgate.{name}" for name in find_packages(include=["compat", "compat.*", "kernels", "kernels.*"])])
