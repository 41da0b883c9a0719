"""The errors that are meant for the person at the keyboard."""


class UserError(Exception):
    """An error whose message is for the user: what was wrong, which file or value, what to do.

    The command line prints the message alone, without a traceback. Everything else that is raised is
    either a misuse of the Python interface (TypeError, ValueError, RuntimeError) or a fault of ours.
    """


class InterruptedRunError(UserError):
    """Ctrl-C in the middle of a run; the message says what is safe and how to go on."""


class OtherClassesError(UserError):
    """Pictures whose classes are not those that they must have, by name."""


class WeightsFileError(UserError, ValueError):
    """A file of weights that cannot be read, trusted or written."""


__all__ = ["InterruptedRunError", "OtherClassesError", "UserError", "WeightsFileError"]
