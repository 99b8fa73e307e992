"""``python -m medkd``: see :mod:`medkd.cli.overview`."""

from medkd.cli.overview import main

if __name__ == "__main__":
    raise SystemExit(main())
