"""The one exception that a user can repair.

Jobs print a `UserError` as one line and exit with status 2; every other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Bad input or a missing precondition; the message names the thing and the remedy."""
