"""``python -m tqcodec`` is the command line."""

import sys

from tqcodec.cli import main

sys.exit(main())
