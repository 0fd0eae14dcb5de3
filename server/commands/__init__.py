"""The subcommands of `saccade`: one module each, with `add_parser` and `run`."""
