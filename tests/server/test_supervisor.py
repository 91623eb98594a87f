"""Changes of models in all workers or in none, over lines whose other ends the tests hold."""

import itertools
import multiprocessing
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any, cast

import pytest

from app.errors import BundleError, NotReady
from app.runtime.rollout import CHANGE_S, Changes, Child
from app.runtime.worker import MAX_MESSAGE, MAX_TEXT, Line, Message, described, receive, restored, send
from app.server.supervisor import Supervisor


class Process:
    """A process that is only ever killed."""

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Team:
    """Two workers, played by a test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.saved: list[tuple[str, str]] = []
        self.ends: list[Line] = []
        self.children: list[Child] = []
        for place in range(2):
            ours, theirs = Pipe()
            self.ends.append(theirs)
            self.children.append(Child(place, cast(Any, Process()), ours, 0.0))
        self.running = list(self.children)
        self.changes = Changes(lambda: self.running, {"tiny": "1"}, self._save, lambda: self.now)
        self._numbers = itertools.count(100)

    def _save(self, model: str, version: str) -> str | None:
        self.saved.append((model, version))
        return "the disk is full"

    def ask(self, place: int, version: str, *, save: bool = True) -> int:
        number = next(self._numbers)
        self.changes.ask(self.children[place], {"number": number, "model": "tiny", "version": version, "save": save})
        return number

    def heard(self, place: int) -> list[Message]:
        """All that a worker was told since."""
        told = []
        while self.ends[place].poll():
            told.append(receive(self.ends[place]))
        return told

    def kinds(self) -> list[list[str]]:
        return [[message["kind"] for message in self.heard(place)] for place in range(2)]

    def done(self, place: int, number: int, error: dict[str, str] | None = None, previous: str | None = None) -> None:
        self.changes.note(self.children[place], {"number": number, "error": error, "previous": previous})

    def lose(self, place: int) -> None:
        self.running.remove(self.children[place])
        self.children[place].line.close()
        self.changes.lose(self.children[place])


@pytest.fixture
def team() -> Team:
    return Team()


def test_all_switch_once_all_have_read_and_then_the_asker_is_told(team: Team) -> None:
    question = team.ask(0, "2")
    (stage,), (other,) = team.heard(0), team.heard(1)
    assert (stage["kind"], stage["model"], stage["version"]) == ("stage", "tiny", "2")
    assert other == stage
    team.done(0, stage["number"])
    assert team.kinds() == [[], []]
    team.done(1, stage["number"])
    assert team.kinds() == [["switch"], ["switch"]]
    assert team.changes.versions == {"tiny": "2"}  # whoever begins from now on
    team.done(0, stage["number"], previous="1")
    assert team.kinds() == [[], []]
    team.done(1, stage["number"], previous="1")
    (answer,) = team.heard(0)
    assert (answer["number"], answer["error"], answer["previous"]) == (question, None, "1")
    assert answer["unsaved"] == "the disk is full"
    assert (team.saved, team.changes.due) == ([("tiny", "2")], None)


def test_none_switches_if_one_can_not_read_it(team: Team) -> None:
    team.ask(1, "2")
    number = team.heard(0)[0]["number"]
    team.done(0, number)
    team.done(1, number, error=described(BundleError("a byte is wrong")))
    assert [message["kind"] for message in team.heard(0)] == ["drop"]
    *_, drop, answer = team.heard(1)
    assert drop["kind"] == "drop"
    error = restored(answer["error"])
    assert (type(error), str(error)) == (BundleError, "a byte is wrong")
    assert (team.changes.versions, team.saved) == ({"tiny": "1"}, [])


def loss(team: Team) -> None:
    team.lose(1)


def lateness(team: Team) -> None:
    team.now = CHANGE_S
    team.changes.give_up()


@pytest.mark.parametrize("happens", [loss, lateness])
def test_none_switches_if_one_is_lost_or_late_while_it_reads(team: Team, happens: Callable[[Team], None]) -> None:
    team.ask(0, "2")
    team.done(0, team.heard(0)[0]["number"])
    happens(team)
    drop, answer = team.heard(0)
    assert drop["kind"] == "drop"
    assert isinstance(restored(answer["error"]), NotReady)
    assert team.changes.versions == {"tiny": "1"}


def test_who_is_lost_while_all_switch_is_not_waited_for(team: Team) -> None:
    team.ask(0, "2")
    number = team.heard(0)[0]["number"]
    for place in (0, 1):
        team.done(place, number)
    team.done(0, number, previous="1")
    team.lose(1)
    switch, answer = team.heard(0)
    assert (switch["kind"], answer["kind"], answer["error"]) == ("switch", "done", None)


def test_who_is_lost_is_told_nothing_and_who_asked_for_the_same_is(team: Team) -> None:
    team.ask(0, "2")
    question = team.ask(1, "2")
    team.lose(0)
    answer = team.heard(1)[-1]
    assert (answer["kind"], answer["number"]) == ("done", question)
    assert isinstance(restored(answer["error"]), NotReady)


def test_what_who_is_lost_had_asked_for_is_made_in_its_turn(team: Team) -> None:
    team.ask(1, "2")
    team.ask(0, "3")
    team.lose(0)
    number = team.heard(1)[-1]["number"]
    for previous in (None, "1"):
        team.done(1, number, previous=previous)
    assert (team.changes.versions, team.changes.due) == ({"tiny": "3"}, None)


def test_who_does_not_switch_is_killed(team: Team) -> None:
    team.ask(0, "2")
    number = team.heard(0)[0]["number"]
    for place in (0, 1):
        team.done(place, number)
    team.done(0, number, previous="1")
    lateness(team)
    assert [cast(Process, child.process).killed for child in team.children] == [False, True]
    assert team.changes.due == 2 * CHANGE_S


def test_changes_are_made_one_after_the_other_and_an_answer_to_the_last_moves_no_other(team: Team) -> None:
    team.ask(0, "2")
    team.ask(1, "3")
    first = team.heard(0)[0]["number"]
    team.done(1, first, error=described(BundleError("a byte is wrong")))
    second = team.heard(0)[-1]
    assert (second["kind"], second["version"]) == ("stage", "3")
    for place in (0, 1):
        team.done(place, first)
    assert "switch" not in [message["kind"] for message in team.heard(0)]


def test_what_several_ask_for_is_made_once(team: Team) -> None:
    questions = [team.ask(place, "2", save=False) for place in (0, 1)]
    number = team.heard(0)[0]["number"]
    for previous in (None, "1"):
        for place in (0, 1):
            team.done(place, number, previous=previous)
    answers = [team.heard(place)[-1] for place in (0, 1)]
    assert [answer["number"] for answer in answers] == questions
    assert [answer["previous"] for answer in answers] == ["1", "2"]  # nothing was left to do for the second
    assert team.saved == []


def supervisor(work: Callable[[Line], None], buried: Callable[[int, str], None] = lambda *_: None) -> Supervisor:
    """Of one worker, a real process, that ignores SIGTERM."""

    def ignore_and_work(line: Line, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        work(line)

    return Supervisor(ignore_and_work, workers=1, versions={}, save=lambda *_: None, buried=buried, grace_s=0)


def fail_and_stay(line: Line) -> None:
    send(line, "failed", error=described(BundleError("a byte is wrong")))
    while True:
        signal.pause()


def fail_and_end_with_the_line(line: Line) -> None:
    send(line, "failed", error=described(BundleError("a byte is wrong")))
    with suppress(EOFError):
        receive(line)


@pytest.mark.parametrize(
    ("work", "limit_s", "killed"), [(fail_and_stay, 0.05, True), (fail_and_end_with_the_line, 60.0, False)]
)
def test_an_error_ends_the_workers_those_too_that_do_not_heed_it(
    work: Callable[[Line], None],
    limit_s: float,
    killed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.server.supervisor.KILL_S", limit_s)
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(BundleError, match="a byte is wrong"):
        supervisor(work).run(listening)
    assert ("has not ended in time and is killed" in caplog.text) is killed
    assert multiprocessing.active_children() == []


def test_who_says_what_is_too_long_is_killed_and_the_service_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def say_too_much(line: Line) -> None:
        send(line, "started")
        send(line, "activate", model="tiny", version="1" * MAX_MESSAGE, save=True)
        fail_and_stay(line)

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert supervisor(say_too_much, buried=stop).run(listening)
    assert "worker 0 is not understood and is killed: expected a message of at most 65536 bytes" in caplog.text


def test_an_error_of_any_length_fits_into_a_message() -> None:
    ours, theirs = Pipe()
    send(ours, "failed", error=described(BundleError("\U0001f4a5" * 6_000)))
    assert str(restored(receive(theirs)["error"])) == "\U0001f4a5" * MAX_TEXT
