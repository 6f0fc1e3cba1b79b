"""``python -m spiritseg`` is the command line."""

from spiritseg.cli import main

if __name__ == "__main__":
    main()
