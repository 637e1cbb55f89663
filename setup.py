"""The optional native loops; everything else is in pyproject.toml.

Without a C compiler the extension is left out and numpy and constriction do its work.
"""

import sys

from setuptools import Extension, setup

# No fused multiply-add: the loops must round as numpy does, so that both choose the same bytes.
FLAGS = ["/O2", "/fp:precise"] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension("tqcodec._native", ["tqcodec/_native.c"], extra_compile_args=FLAGS, optional=True)
    ]
)
