"""Memory that large bodies share."""

import pytest

from app.api.http.rooms import Room
from app.errors import Overloaded


def test_bodies_share_the_room() -> None:
    room = Room(100)
    room.take(60)
    room.take(40)
    with pytest.raises(Overloaded, match="body: 100 bytes of large bodies are being worked on"):
        room.take(1)
    room.give_back(60)
    room.take(50)


def test_a_body_larger_than_the_room_is_alone_in_it() -> None:
    room = Room(100)
    room.take(200)
    with pytest.raises(Overloaded):
        room.take(1)
    room.give_back(200)
    room.take(1)
    with pytest.raises(Overloaded):
        room.take(200)
