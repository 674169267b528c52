"""The command line: options made from the run dataclasses, and errors turned into one line."""
