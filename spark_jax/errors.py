"""The one exception that means "the input is at fault"; the command line turns it into exit code 2."""


class SparkError(ValueError):
    """Bad input from outside: a file, a configuration, a request.

    The message is one line and names the thing, its value and what was expected.
    """
