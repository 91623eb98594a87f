from tests.api.published import client

__all__ = ["client"]
