"""`python -m densitrace` is the command `densitrace`."""

from .tracer.cli import main

if __name__ == "__main__":
    main()
