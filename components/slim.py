"""Takes out of installed packages what no tool loads: their tests, headers, sources, and the symbols of libraries.

It runs in the build of a base, in a bare Python, on the folder that pip has just installed into, and prints how
much each package lost:

    python3 components/slim.py FOLDER            what is listed below
    python3 components/slim.py --strip FOLDER    symbols as well, which takes binutils

`make test-images` runs every tool, and reads and writes every format of features, on what is left.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

# What goes, by package: paths in it, with wildcards. Licences stay, as they lie in the *.dist-info folders.
UNUSED: dict[str, tuple[str, ...]] = {
    "numpy": ("**/tests", "_core/include", "_core/lib/*.a", "random/lib/*.a"),
    "onnx": ("backend/test",),
    # Arrow's clients of remote services and stores: features are fetched by shared/locations.py. `pyarrow.fs`
    # does without those whose module is missing. Its libraries are there three times, for compilers.
    "pyarrow": (
        "tests", "include", "includes", "src", "**/*.pyx", "**/*.pxd", "**/*.pxi",
        "*flight*.so*", "flight.py", "libarrow_s3.so*", "_s3fs.*", "_gcsfs.*", "_azurefs.*", "_hdfs.*",
        "_pyarrow_cpp_tests.*", "libarrow_python*.so", "libarrow_python*.so.*.*",
    ),
    "pyogrio": ("tests",),
    "rasterio": ("_example.*",),
    "shapely": ("tests",),
    "sympy": ("**/tests",),
    # Not torch_shm_manager, which processes share tensors by.
    "torch": ("test", "include", "bin/test_*", "bin/*Test", "bin/protoc*"),
}  # fmt: skip
# Whose libraries hold symbols for debuggers and linkers, a fifth of their size. OpenBLAS is not among them: what
# packs it into the wheel moves its parts such that `strip` breaks them.
STRIPPED = (
    "Crypto", "PIL", "pyarrow", "pyogrio", "pyogrio.libs", "pyproj", "rasterio", "rasterio.libs", "shapely.libs",
)  # fmt: skip


def unused(folder: Path, package: str) -> list[Path]:
    """Return what can go of a package: files and folders."""
    return sorted({path for pattern in UNUSED[package] for path in (folder / package).glob(pattern)})


def size(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())


def slim(folder: Path, *, strip: bool) -> dict[str, int]:
    """Slim the packages of a folder; those that it lacks are passed over.

    Args:
        folder: Where pip installs packages: a `site-packages`.
        strip: Whether to take the symbols out of libraries.

    Returns:
        Bytes that went, by package.
    """
    went: dict[str, int] = {}
    for package in sorted({*UNUSED, *STRIPPED}):
        root = folder / package
        if not root.is_dir():
            continue
        before = size(root)
        for path in unused(folder, package) if package in UNUSED else []:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # it may have gone with its folder
        if strip and package in STRIPPED:
            libraries = sorted(path for path in root.rglob("*.so*") if path.is_file())
            subprocess.run(["strip", "--strip-unneeded", "--preserve-dates", *libraries], check=True)
        went[package] = before - size(root)
    return went


def main(argv: list[str]) -> None:
    """Run from the command line."""
    match argv:
        case ["--strip", folder]:
            went = slim(Path(folder), strip=True)
        case [folder] if not folder.startswith("-"):
            went = slim(Path(folder), strip=False)
        case _:
            sys.exit(__doc__)
    for package, count in went.items():
        print(f"{package}: {count / 1e6:.1f} MB less")


if __name__ == "__main__":
    main(sys.argv[1:])
