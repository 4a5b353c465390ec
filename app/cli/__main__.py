"""Makes `python -m app.cli` the same as `salem`."""

from app.cli import main

main()
