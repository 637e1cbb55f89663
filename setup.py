"""The optional native loops and the decoder in C; everything else is in pyproject.toml.

Without a C compiler they are left out, and numpy and constriction do their work.
"""

import sys

from setuptools import Extension, setup

# No fused multiply-add: the loops must round as numpy does, so that both choose the same bytes.
FLAGS = ["/O2", "/fp:precise"] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "tqcodec.native._loops",
            ["tqcodec/native/loops.c"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "tqcodec.native._decoder",
            ["tqcodec/native/decoder.c", "decoders/c/tqcdec.c"],
            include_dirs=["decoders/c"],
            depends=["decoders/c/tqcdec.h"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
    ]
)
