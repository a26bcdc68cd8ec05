"""``python -m capgate.compat``: the report."""

import sys

from .report import main

sys.exit(main())
