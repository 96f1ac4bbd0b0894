"""`python -m exporter` is the command `braze-exporter`."""

import signal
import sys

_RUNNING = {"", "demo", "simulate"}  # the commands that run until a signal; the one without a name serves


def main() -> None:
    """Run the command and end the process.

    Signals wait from here on. Before, while Python itself starts, they do what they do by default.
    """
    arguments = sys.argv[1:]
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    running = name in _RUNNING and "--config.check" not in arguments
    numbers = {signal.SIGTERM, signal.SIGINT}
    if running and not name:
        numbers.add(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    from exporter import process  # noqa: PLC0415 - this and all else is loaded when signals wait

    process.run(name, numbers, running=running)


if __name__ == "__main__":
    main()
