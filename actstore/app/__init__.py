"""What each command does: a module per command, with `run(run) -> exit code`."""
