"""The errors of seqserve by meaning; `app.api.http.problems` maps each to an HTTP status.

SeqserveError
|- InvalidField       one field of a request is wrong
|- Malformed          what was sent can't be parsed
|- UnsupportedType    what was sent is of a type that isn't taken here
|- TooLarge           what was sent is larger than is taken
|- Unauthenticated    a key is needed, and none that is valid was sent
|- Forbidden          who asks is not allowed to
|- RateLimited        who asks has asked for too much of late
|- UnknownModel       no model of that name
|- UnknownVersion     the model has no version of that name
|- Unservable         the version exists but can't be served
|- NotReady           the model exists but can't answer now
|- Overloaded         the queue is full
|- DeadlineExceeded   the answer would come too late
|- BundleError        a bundle on disk is damaged, foreign or missing
|- CorpusError        a training text is missing, empty or unreadable
`- SettingsError      the environment or a flag asks for what can't be
"""


class SeqserveError(Exception):
    """Base of all; its text is one sentence that a user may read."""


class InvalidField(SeqserveError):
    """A field of a request is wrong: `field` names it, the message says what was expected and what was found."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Malformed(SeqserveError):
    """What was sent can't be parsed."""


class UnsupportedType(SeqserveError):
    """What was sent is of a media type that isn't taken here."""


class TooLarge(SeqserveError):
    """More was sent than is taken; `hopeless` if what is still to come can't be waited for."""

    def __init__(self, message: str, *, hopeless: bool = True) -> None:
        super().__init__(message)
        self.hopeless = hopeless


class Unauthenticated(SeqserveError):
    """A key is needed; `refused` if one was sent that is wrong or has expired."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class Forbidden(SeqserveError):
    """Who asks is known, or need not be, and is not allowed to."""


class RateLimited(SeqserveError):
    """More than the `remaining` units of a caller are asked for; all are there again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int, remaining: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.remaining = remaining


class UnknownModel(SeqserveError):
    """No model of this name."""


class UnknownVersion(SeqserveError):
    """No version of this name in the model's folder."""


class Unservable(SeqserveError):
    """A version that was asked to serve can't: its bundle was refused, and what served before goes on."""


class NotReady(SeqserveError):
    """The model was refused, is still loading or is shutting down; `closing` if no more can be asked here at all."""

    def __init__(self, message: str, *, closing: bool = False) -> None:
        super().__init__(message)
        self.closing = closing


class Overloaded(SeqserveError):
    """The model's queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(SeqserveError):
    """The deadline passed before the answer was ready."""


class BundleError(SeqserveError):
    """A bundle can't be trusted: a file is missing or changed, or the format is not ours."""


class CorpusError(SeqserveError):
    """A training text can't be used."""


class SettingsError(SeqserveError):
    """The environment or a flag asks for what can't be: which one, what was expected and what was found."""
