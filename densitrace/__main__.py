"""Run the `densitrace` command as `python -m densitrace`."""

from .tracer.cli import main

if __name__ == "__main__":
    main()
