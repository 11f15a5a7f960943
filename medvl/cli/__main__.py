"""Run the command as ``python -m medvl.cli``."""

from medvl.cli import main

raise SystemExit(main())
