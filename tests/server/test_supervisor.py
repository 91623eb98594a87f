"""All-or-none version rollouts over pipes held by the test, and a supervisor of real processes."""

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
    """A fake process that records kill()."""

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Team:
    """Two fake workers and their rollouts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.saved: list[tuple[str, str]] = []
        self.ends: list[Line] = []
        self.children: list[Child] = []
        for index in range(2):
            ours, theirs = Pipe()
            self.ends.append(theirs)
            self.children.append(Child(index, cast(Any, Process()), ours, 0.0))
        self.running = list(self.children)
        self.changes = Changes(lambda: self.running, {"tiny": "1"}, self._save, lambda: self.now)
        self._numbers = itertools.count(100)

    def _save(self, model: str, version: str) -> str | None:
        self.saved.append((model, version))
        return "the disk is full"

    def ask(self, index: int, version: str, *, save: bool = True) -> int:
        number = next(self._numbers)
        self.changes.ask(self.children[index], {"number": number, "model": "tiny", "version": version, "save": save})
        return number

    def received(self, index: int) -> list[Message]:
        """Return the messages sent to a worker since the last call."""
        messages = []
        while self.ends[index].poll():
            messages.append(receive(self.ends[index]))
        return messages

    def kinds(self) -> list[list[str]]:
        return [[message["kind"] for message in self.received(index)] for index in range(2)]

    def done(self, index: int, number: int, error: dict[str, str] | None = None, previous: str | None = None) -> None:
        self.changes.note(self.children[index], {"number": number, "error": error, "previous": previous})

    def lose(self, index: int) -> None:
        self.running.remove(self.children[index])
        self.children[index].line.close()
        self.changes.lose(self.children[index])


@pytest.fixture
def team() -> Team:
    return Team()


def test_all_workers_switch_after_all_have_loaded_and_then_the_requester_gets_the_answer(team: Team) -> None:
    question = team.ask(0, "2")
    (stage,), (other,) = team.received(0), team.received(1)
    assert (stage["kind"], stage["model"], stage["version"]) == ("stage", "tiny", "2")
    assert other == stage
    team.done(0, stage["number"])
    assert team.kinds() == [[], []]
    team.done(1, stage["number"])
    assert team.kinds() == [["switch"], ["switch"]]
    assert team.changes.versions == {"tiny": "2"}  # for workers started from now on
    team.done(0, stage["number"], previous="1")
    assert team.kinds() == [[], []]
    team.done(1, stage["number"], previous="1")
    (answer,) = team.received(0)
    assert (answer["number"], answer["error"], answer["previous"]) == (question, None, "1")
    assert answer["unsaved"] == "the disk is full"
    assert (team.saved, team.changes.due) == ([("tiny", "2")], None)


def test_no_worker_switches_if_one_fails_to_load(team: Team) -> None:
    team.ask(1, "2")
    number = team.received(0)[0]["number"]
    team.done(0, number)
    team.done(1, number, error=described(BundleError("a byte is wrong")))
    assert [message["kind"] for message in team.received(0)] == ["drop"]
    *_, drop, answer = team.received(1)
    assert drop["kind"] == "drop"
    error = restored(answer["error"])
    assert (type(error), str(error)) == (BundleError, "a byte is wrong")
    assert (team.changes.versions, team.saved) == ({"tiny": "1"}, [])


def lose_worker(team: Team) -> None:
    team.lose(1)


def time_out(team: Team) -> None:
    team.now = CHANGE_S
    team.changes.give_up()


@pytest.mark.parametrize("fail", [lose_worker, time_out])
def test_no_worker_switches_if_one_exits_or_times_out_while_loading(team: Team, fail: Callable[[Team], None]) -> None:
    team.ask(0, "2")
    team.done(0, team.received(0)[0]["number"])
    fail(team)
    drop, answer = team.received(0)
    assert drop["kind"] == "drop"
    assert isinstance(restored(answer["error"]), NotReady)
    assert team.changes.versions == {"tiny": "1"}


def test_a_worker_that_exits_during_the_switch_is_not_waited_for(team: Team) -> None:
    team.ask(0, "2")
    number = team.received(0)[0]["number"]
    for index in (0, 1):
        team.done(index, number)
    team.done(0, number, previous="1")
    team.lose(1)
    switch, answer = team.received(0)
    assert (switch["kind"], answer["kind"], answer["error"]) == ("switch", "done", None)


def test_a_failure_is_reported_to_the_remaining_requester(team: Team) -> None:
    team.ask(0, "2")
    question = team.ask(1, "2")
    team.lose(0)
    answer = team.received(1)[-1]
    assert (answer["kind"], answer["number"]) == ("done", question)
    assert isinstance(restored(answer["error"]), NotReady)


def test_a_queued_rollout_runs_after_its_requester_exited(team: Team) -> None:
    team.ask(1, "2")
    team.ask(0, "3")
    team.lose(0)
    number = team.received(1)[-1]["number"]
    for previous in (None, "1"):
        team.done(1, number, previous=previous)
    assert (team.changes.versions, team.changes.due) == ({"tiny": "3"}, None)


def test_a_worker_that_does_not_switch_is_killed(team: Team) -> None:
    team.ask(0, "2")
    number = team.received(0)[0]["number"]
    for index in (0, 1):
        team.done(index, number)
    team.done(0, number, previous="1")
    time_out(team)
    assert [cast(Process, child.process).killed for child in team.children] == [False, True]
    assert team.changes.due == 2 * CHANGE_S


def test_rollouts_run_one_at_a_time_and_late_answers_are_ignored(team: Team) -> None:
    team.ask(0, "2")
    team.ask(1, "3")
    first = team.received(0)[0]["number"]
    team.done(1, first, error=described(BundleError("a byte is wrong")))
    second = team.received(0)[-1]
    assert (second["kind"], second["version"]) == ("stage", "3")
    for index in (0, 1):
        team.done(index, first)
    assert "switch" not in [message["kind"] for message in team.received(0)]


def test_equal_requests_share_one_rollout(team: Team) -> None:
    questions = [team.ask(index, "2", save=False) for index in (0, 1)]
    number = team.received(0)[0]["number"]
    for previous in (None, "1"):
        for index in (0, 1):
            team.done(index, number, previous=previous)
    answers = [team.received(index)[-1] for index in (0, 1)]
    assert [answer["number"] for answer in answers] == questions
    assert [answer["previous"] for answer in answers] == ["1", "2"]  # the second found it done
    assert team.saved == []


def supervisor(work: Callable[[Line], None], on_reaped: Callable[[int, str], None] = lambda *_: None) -> Supervisor:
    """Return a supervisor of one real worker process that ignores SIGTERM."""

    def ignore_and_work(line: Line, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        work(line)

    return Supervisor(ignore_and_work, workers=1, versions={}, save=lambda *_: None, on_reaped=on_reaped, grace_s=0)


def fail_and_hang(line: Line) -> None:
    send(line, "failed", error=described(BundleError("a byte is wrong")))
    while True:
        signal.pause()


def fail_and_exit_when_the_pipe_closes(line: Line) -> None:
    send(line, "failed", error=described(BundleError("a byte is wrong")))
    with suppress(EOFError):
        receive(line)


@pytest.mark.parametrize(
    ("work", "limit_s", "killed"), [(fail_and_hang, 0.05, True), (fail_and_exit_when_the_pipe_closes, 60.0, False)]
)
def test_an_error_ends_all_workers_even_those_that_ignore_sigterm(
    work: Callable[[Line], None],
    limit_s: float,
    killed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.server.supervisor.KILL_S", limit_s)
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(BundleError, match="a byte is wrong"):
        supervisor(work).run(listening)
    assert ("did not exit in time and is killed" in caplog.text) is killed
    assert multiprocessing.active_children() == []


def test_a_worker_that_sends_too_long_a_message_is_killed_and_the_service_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def send_too_much(line: Line) -> None:
        send(line, "started")
        send(line, "activate", model="tiny", version="1" * MAX_MESSAGE, save=True)
        fail_and_hang(line)

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert supervisor(send_too_much, on_reaped=stop).run(listening)
    assert "worker 0: invalid message, killed: expected a message of at most 65536 bytes" in caplog.text


def test_an_error_message_is_truncated_to_fit() -> None:
    ours, theirs = Pipe()
    send(ours, "failed", error=described(BundleError("\U0001f4a5" * 6_000)))
    assert str(restored(receive(theirs)["error"])) == "\U0001f4a5" * MAX_TEXT
