"""Errors that users see: what was found, where, what was expected, and what to do.

The command line prints the message alone and exits 1; anything else is a bug and keeps its traceback.
"""


class JeopardaError(Exception):
    """Base of every error that is meant for the user."""


class RecipeError(JeopardaError, ValueError):
    """A recipe that cannot work: unknown key, wrong type, impossible value."""


class ArchiveError(JeopardaError, OSError):
    """An archive that cannot be read as what it should be."""


class PatchError(ArchiveError):
    """One patch of an archive that is rejected; the rest of the archive goes on. It becomes a line of the table of
    rejects: which file, what is wrong with it, what was expected instead."""

    def __init__(self, file: str, reason: str, expected: str = "") -> None:
        super().__init__(f"{file}: {reason}" + (f"; expected {expected}" if expected else ""))
        self.file, self.reason, self.expected = str(file), reason, expected

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.file, self.reason, self.expected)  # it comes back from other processes


class StoreError(JeopardaError, OSError):
    """A store that is missing, incomplete, damaged, or does not fit its use."""


class SceneError(JeopardaError, OSError):
    """A scene whose bands, grids or units do not fit."""


class CheckpointError(JeopardaError, OSError):
    """A checkpoint that is missing, damaged, or belongs to another model, store or recipe."""


class CommError(JeopardaError, RuntimeError):
    """Ranks that do not find each other, or that disagree."""


class LaunchError(JeopardaError, RuntimeError):
    """A job that could not be submitted, or that did not end well."""


class DiskError(JeopardaError, OSError):
    """No room, no quota left, or no leave to write."""


class Stopped(JeopardaError):
    """A stage that saved its state and stopped early on purpose: exit code 75, start it again to go on."""


class RanksLost(Stopped):
    """Another rank ended in the middle of the work: what is done since the last checkpoint is lost, the rest is not."""
