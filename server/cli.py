"""`saccade`: reads the command line and runs one subcommand.

Only `argparse` and the (light) command modules are imported before the command is known, so that
`saccade --help` answers at once; and those in `main`, where Ctrl-C is one line already. Errors cost
one line on stderr: exit status 2 for a request that cannot be right, 1 for a failure while running,
130 for Ctrl-C. `--debug` shows the traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from .errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UsageError


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from .commands import bench, calibrate, doctor, generate, look, methods, serve

    parser = argparse.ArgumentParser(
        prog="saccade", description="Long-context sparse-attention inference on CPUs and GPUs."
    )
    parser.add_argument("--version", action="version", version=f"saccade {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (generate, look, calibrate, doctor, methods, bench, serve):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `saccade` with `argv` (default: the process's own) and return its exit status."""
    args = None
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("saccade: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`head`, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # the last door: every error ends as one line
        if args is None or args.debug:
            raise
        print(f"saccade: {describe(error)}", file=sys.stderr)
        return EXIT_USAGE if is_usage(error) else EXIT_FAILED


def is_usage(error: Exception) -> bool:
    """Whether the person's request, and not its execution, was at fault."""
    from ..engine.errors import RequestError

    return isinstance(error, UsageError | RequestError)


def describe(error: Exception) -> str:
    """An exception as one line."""
    from ..engine.errors import SaccadeError

    text = " ".join(str(error).split())
    if isinstance(error, UsageError | SaccadeError | OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text} (run `saccade --debug ...` for the traceback)"


if __name__ == "__main__":
    sys.exit(main())
