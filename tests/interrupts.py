"""For tests that press Ctrl-C: a process started in the background of a shell is told to ignore it."""

import signal


def listen_to_ctrl_c() -> None:
    """As `preexec_fn`: let the new process hear the signal whatever this one was told."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
