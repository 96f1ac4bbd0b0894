"""`python -m exporter` is the command `braze-exporter`."""

import sys


def main() -> int:
    """Run the command; `health` alone, as loading all the others takes several times as long as asking."""
    if sys.argv[1:2] == ["health"]:
        from exporter import health  # noqa: PLC0415 - see above

        return health.main(sys.argv[2:])
    from exporter import cli  # noqa: PLC0415 - see above

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
