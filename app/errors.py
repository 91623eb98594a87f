"""The errors of seqserve by meaning; `app.api.http.problems` maps each to an HTTP status.

SeqserveError
|- InvalidField       one field of a request is invalid
|- Malformed          the request's content can't be parsed
|- UnsupportedType    the request's media type or content coding is not supported
|- TooLarge           the request is too large
|- Unauthenticated    a valid key is required
|- Forbidden          the key lacks the scope
|- RateLimited        the client has exceeded its rate limit
|- UnknownModel       no model of that name
|- UnknownVersion     the model has no version of that name
|- Unservable         the version exists but can't be served
|- NotReady           the model exists but can't answer now
|- Overloaded         the queue is full
|- DeadlineExceeded   the deadline passed before the answer was ready
|- BundleError        a bundle on disk is damaged, foreign or missing
|- CorpusError        a training text is missing, empty or unreadable
`- SettingsError      an environment variable or flag has an invalid value
"""


class SeqserveError(Exception):
    """Base class of all errors; the text is one sentence for the user."""


class InvalidField(SeqserveError):
    """A field of a request is invalid: `field` names it, `message` says what was expected and what was found."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Malformed(SeqserveError):
    """The request's content can't be parsed."""


class UnsupportedType(SeqserveError):
    """The request's media type is not supported, or its content coding; then `codings` are those that are."""

    def __init__(self, message: str, codings: str = "") -> None:
        super().__init__(message)
        self.codings = codings


class TooLarge(SeqserveError):
    """The request exceeds a size limit; `unread` if the rest is too large to be read and discarded."""

    def __init__(self, message: str, *, unread: bool = True) -> None:
        super().__init__(message)
        self.unread = unread


class Unauthenticated(SeqserveError):
    """A key is required; `invalid` if the request has one that is unknown or expired."""

    def __init__(self, message: str, *, invalid: bool) -> None:
        super().__init__(message)
        self.invalid = invalid


class Forbidden(SeqserveError):
    """The client lacks the permission, whether authenticated or not."""


class RateLimited(SeqserveError):
    """The request costs more than the client's `remaining` units; its quota is full after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int, remaining: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.remaining = remaining


class UnknownModel(SeqserveError):
    """No model of this name."""


class UnknownVersion(SeqserveError):
    """No version of this name in the model's folder."""


class Unservable(SeqserveError):
    """A version can't be activated: its bundle was rejected, and the former version is still served."""


class NotReady(SeqserveError):
    """The model was rejected, is loading or is shutting down; `closing` if the whole server shuts down."""

    def __init__(self, message: str, *, closing: bool = False) -> None:
        super().__init__(message)
        self.closing = closing


class Overloaded(SeqserveError):
    """The model's queue is full; retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(SeqserveError):
    """The deadline passed before the answer was ready."""


class BundleError(SeqserveError):
    """A bundle is invalid: a file is missing or changed, or the format is unknown."""


class CorpusError(SeqserveError):
    """A training text is unusable."""


class SettingsError(SeqserveError):
    """An environment variable or flag is invalid: its name, the expected value and the one found."""
