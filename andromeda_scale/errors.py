"""The one exception for users' mistakes."""


class UserError(Exception):
    """A mistake in what the user gave us: names file, key, value and remedy in one paragraph.

    The command line prints it without a stack trace and exits with status 2, before any process
    has started and before anything was written.
    """
