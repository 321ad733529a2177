"""Imports in a checkout, where the parts of the package lie beside this folder and not in it.

Python that runs in the repository's root has the root on its path. It then finds this folder,
without the parts, before the installed package, and the folder kernels/ under the top-level name
`kernels`, which belongs to another package: transformers looks for that one and would import ours.
"""

import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import cast

ROOT = Path(__file__).resolve().parents[1]


def search_path(own: list[str]) -> list[str]:
    """Where the package's modules are: where it is installed, and only then in this folder.

    An editable install has no such folder; the finder that it brings knows the parts.
    """
    everywhere = list(pkgutil.extend_path(own, __package__))
    return [*(folder for folder in everywhere if folder not in own), *own]


class OtherKernels(MetaPathFinder):
    """Finds the top-level package `kernels` as if the root were not on the path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "kernels":
            return None
        elsewhere = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
        return PathFinder.find_spec(fullname, elsewhere)


def release_kernels() -> None:
    """Give the top-level name `kernels` back to whom it belongs, or to nobody."""
    found = PathFinder.find_spec("kernels")
    if found is None or found.origin is None or Path(found.origin).resolve().parents[1] != ROOT:
        return
    finder = OtherKernels()
    if finder.find_spec("kernels", None) is not None:
        sys.meta_path.insert(0, finder)
    else:
        sys.modules["kernels"] = cast(ModuleType, None)  # as documented: no module of that name
