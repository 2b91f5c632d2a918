"""Builds `sentiment_client` from modules that the pipeline uses itself, so that no code exists twice.

The modules are copied below the package, and their imports of each other are changed to match.
"""

import re
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

PACKAGE = "sentiment_client"
MODULES = (
    "common/__init__.py",
    "common/errors.py",
    "common/request_context.py",
    "common/tracing.py",
    "common/triton_addresses.py",
    "serving/__init__.py",
    "serving/client/__init__.py",
    "serving/client/client.py",
    "serving/client/errors.py",
    "serving/client/failover.py",
    "serving/client/one_version.py",
    "serving/client/sockets.py",
    "serving/client/triton_client.py",
    "serving/client/uncancelled_calls.py",
    "serving/model_repo/__init__.py",
    "serving/model_repo/protocol.py",
    "serving/model_repo/texts.py",
)
"""`serving/client/client.py` and what it imports, as paths in the checkout."""
_HERE = Path(__file__).resolve().parent
_IMPORT = re.compile(r"^( *from )(?=(?:common|serving)\b)", re.MULTILINE)


def write_modules(package: Path) -> None:
    """Write the modules below the directory `package`. An sdist has them already; a checkout has their originals."""
    for module in MODULES:
        original = _HERE / PACKAGE / module
        if not original.is_file():
            original = _HERE.parent / module
        target = package / module
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_IMPORT.sub(rf"\1{PACKAGE}.", original.read_text(encoding="utf-8")), encoding="utf-8")


class BuildWithModules(build_py):
    """Adds the modules to the package."""

    def run(self) -> None:
        """Build the package."""
        if self.editable_mode:
            # setuptools only warns about exceptions here, and installs a package that cannot be imported.
            sys.exit(
                f"error: {PACKAGE} cannot be installed with -e, because it is built from copies of modules. "
                "Install it without -e, and again after each change: pip install ./client"
            )
        package = Path(self.build_lib, PACKAGE)
        shutil.rmtree(package, ignore_errors=True)  # an earlier build may have left modules that are no longer in it
        super().run()
        write_modules(package)


class SdistWithModules(sdist):
    """Adds the modules to the sdist, which is built where there is no checkout."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Create the directory that becomes the archive."""
        super().make_release_tree(base_dir, files)
        write_modules(Path(base_dir, PACKAGE))


setup(cmdclass={"build_py": BuildWithModules, "sdist": SdistWithModules})
