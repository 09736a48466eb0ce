"""``python -m megaclass``, which is what torchrun starts."""

import sys

from megaclass.cli import main

sys.exit(main())
