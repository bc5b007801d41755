"""`python -m latentseg.cli` does what `latentseg` does."""

import sys

from . import main

sys.exit(main())
