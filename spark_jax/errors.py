"""The one exception that means "the input is at fault"; the command line turns it into exit code 2."""


class SparkError(ValueError):
    """Bad input from outside: a file, a configuration, a request.

    The message is one line and names the thing, its value and what was expected.
    """


def one_line(message: object, limit: int | None = None) -> str:
    """Returns the text of an error or any other object with each run of white space as one space.

    Args:
      limit: the most characters that are kept; None keeps all of them.
    """
    return " ".join(str(message).split())[:limit]
