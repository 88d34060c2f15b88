"""`python -m smlmcore` is the command `smlmcore`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
