"""The script ``tqcodec``, which is also ``python -m tqcodec``."""

import signal
import sys

INTERRUPTED = 130  # as in `cli`, which may not have come so far


def main() -> int:
    """Run the command line; Ctrl-C is none of Python's tracebacks, from the imports to the end."""
    try:
        from tqcodec.cli import commands

        code = commands.main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to tidy up any more
        return code
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
