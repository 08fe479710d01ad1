"""``python -m dbguard``: the same as the command ``dbguard``."""

import sys

from dbguard.cli import main

sys.exit(main())
