"""The exception for users' mistakes, and that of instruments that are not there."""


class UserError(Exception):
    """A mistake in what the user gave us: names file, key, value and remedy in one paragraph.

    The command line prints it without a stack trace and exits with status 2, before any process
    has started and before anything was written.
    """


class CollectorUnavailable(Exception):
    """A collector cannot work here; its text says why.

    One that watches ranks raises it on every rank or on none.
    """
