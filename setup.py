"""Finds the packages: those in `tokenpass/`, and those that `package-dir` maps into it.

Discovery cannot be left to pyproject.toml, which knows no mapped folders, nor to the links
`tokenpass/passes` and `tokenpass/codegen`, which a source distribution does not carry.
"""

from setuptools import find_packages, setup

MAPPED = ("passes", "codegen")


def packages() -> list[str]:
    """Every package by the name under which it is imported."""
    found = set(find_packages(include=["tokenpass", "tokenpass.*"]))
    for folder in MAPPED:
        found.add(f"tokenpass.{folder}")
        found.update(f"tokenpass.{folder}.{name}" for name in find_packages(folder))
    return sorted(found)


setup(packages=packages())
