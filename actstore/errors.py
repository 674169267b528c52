"""Every error of the package, grouped by what a caller does about it.

Each message is one line that names the file, row, key or unit concerned and the remedy.
`exit_code` is what the command line returns for it.
"""

__all__ = [
    "ActstoreError",
    "ChecksumError",
    "DamagedStoreError",
    "DatasetError",
    "IncompleteRunError",
    "InputError",
    "InterruptedRunError",
    "MissingShardError",
    "NotAStoreError",
    "ResourceError",
    "StoreMismatchError",
    "UnknownNameError",
    "UnsupportedModelError",
    "WorkerError",
]


class ActstoreError(Exception):
    """Base of all errors raised on purpose by actstore."""

    exit_code = 1


# --- change what you asked for ---------------------------------------------------------------


class InputError(ActstoreError):
    """The request, a file or an option is wrong; nothing was written."""

    exit_code = 2


class DatasetError(InputError):
    """A dataset file cannot be read as asked (missing file, column, row)."""


class UnknownNameError(InputError):
    """A site, layer, mask, pool, task or probe that does not exist here."""


class UnsupportedModelError(InputError):
    """The model's architecture has no known hook points, or fails its self-test."""


class NotAStoreError(InputError):
    """The path holds no activation store, or one of another format version."""


class StoreMismatchError(InputError):
    """The store exists and was made with another configuration."""


class ResourceError(InputError):
    """The machine or cluster cannot do this now (no space, no memory, no worker)."""


# --- repair the store ------------------------------------------------------------------------


class DamagedStoreError(ActstoreError):
    """Stored bytes are missing or wrong; `actstore verify` says which."""


class MissingShardError(DamagedStoreError):
    """A shard that should exist is absent or was never committed."""


class ChecksumError(DamagedStoreError):
    """Bytes on disk do not match their checksum or size."""


# --- run the same command again --------------------------------------------------------------


class IncompleteRunError(ActstoreError):
    """The run ended, but some units are quarantined or missing."""


class WorkerError(ActstoreError):
    """A worker could not be started or kept alive; carries the worker's own message."""


class InterruptedRunError(ActstoreError):
    """The user interrupted the run; it resumes with the same command."""

    exit_code = 130
