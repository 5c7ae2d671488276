"""`python -m gpt` is `gpt`."""

import sys

from gpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
