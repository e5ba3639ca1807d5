"""The errors a user can cause, each with the place it came from and the way out.

Every message says what was expected, what came, where it was set and how to mend it. The command line prints these
without a traceback; anything else that reaches the user is a bug of ours.
"""


class IncdetError(Exception):
    """Base of every error that a user's input can cause."""


class ConfigError(IncdetError):
    """A configuration file or override that cannot be honoured."""


class DataError(IncdetError):
    """An image, an annotation or a dataset folder that cannot be used."""


class SplitError(IncdetError):
    """A task split, class order or protocol that does not fit the data."""


class CheckpointError(IncdetError):
    """A weights or state file that is damaged, unsafe or of another model."""


class MethodError(IncdetError):
    """A method, or a combination of methods, that cannot run here."""


class DivergenceError(IncdetError):
    """Training whose losses are no longer finite."""
