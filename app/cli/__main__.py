"""`python -m app.cli` is `salem`."""

from app.cli import main

main()
