"""The packages, found: src/capgate has its own module, and links to the folders compat and kernels, which are in it."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

folders = {"": "src"}
linked = all(Path("src/capgate", name).is_dir() for name in ("compat", "kernels"))
if "editable_wheel" not in sys.argv or not linked:
    # Archives hold the folders themselves: an unpacked one may have lost the links. An editable install puts src on Python's
    # path, where editors and type checkers find it all; without the links it maps the packages, and only Python finds them.
    folders |= {"capgate.compat": "compat", "capgate.kernels": "kernels"}
found = find_packages(include=["compat", "compat.*", "kernels", "kernels.*"])
setup(packages=["capgate", *(f"capgate.{name}" for name in found)], package_dir=folders)
