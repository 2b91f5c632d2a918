"""Builds `sentiment_client` from modules that the pipeline uses itself, so that no code exists twice.

The modules are copied below the package, and their imports of each other are changed to match.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

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
_PROJECT = Path(__file__).resolve().parents[1]
_IMPORT = re.compile(r"^( *from )(?=(?:common|serving)\b)", re.MULTILINE)


class BuildFromProject(build_py):
    """Adds the modules to the package."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        for module in MODULES:
            target = Path(self.build_lib, PACKAGE, module)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = (_PROJECT / module).read_text(encoding="utf-8")
            target.write_text(_IMPORT.sub(rf"\1{PACKAGE}.", source), encoding="utf-8")


setup(cmdclass={"build_py": BuildFromProject})
