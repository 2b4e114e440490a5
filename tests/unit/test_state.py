"""What every state store promises; a further kind of store joins by one line in ``STORES``."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.state.embedded import EmbeddedStore
from common.state.store import EventRecord, SessionRecord, Store, StoreError, TelemetryRecord

# kind of store -> opens the same store again whenever it is called with the same folder
STORES: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: EmbeddedStore(folder / "state.sqlite")}


@pytest.fixture(params=STORES)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return lambda: STORES[request.param](tmp_path)


@pytest.fixture
def store(reopen: Callable[[], Store]) -> Iterator[Store]:
    opened = reopen()
    yield opened
    opened.close()


def session(name: str, created_at: float = 1.0, state: str = "running") -> SessionRecord:
    return SessionRecord(
        name, created_at, state, {"spec": {"mask": {"kind": "none"}}, "list": [1, 2.5, None]}
    )


def event(number: int) -> EventRecord:
    return EventRecord(
        number, 10.0 + number, "detector", "detector", "bad_file", f"line {number}", {"n": number}
    )


def test_a_session_comes_back_as_it_was_saved(store: Store) -> None:
    store.save_session(session("a"))
    assert store.session("a") == session("a")


def test_saving_again_replaces(store: Store) -> None:
    store.save_session(session("a"))
    store.save_session(session("a", state="completed"))
    assert store.sessions() == [session("a", state="completed")]


def test_sessions_are_listed_oldest_first(store: Store) -> None:
    for name, created_at in (("b", 3.0), ("a", 2.0), ("c", 1.0)):
        store.save_session(session(name, created_at))
    assert [record.id for record in store.sessions()] == ["c", "a", "b"]


def test_what_is_not_there_is_not_an_error(store: Store) -> None:
    assert store.session("nobody") is None
    assert store.configurations("nobody") == []
    assert store.events("nobody") == []
    assert store.telemetry("nobody") == []


def test_configurations_keep_their_order_and_their_session(store: Store) -> None:
    for number in (2, 1, 10):
        store.save_configuration("a", number, {"number": number})
    store.save_configuration("b", 1, {"number": -1})
    store.save_configuration("a", 2, {"number": 2})  # written twice, as after a failure
    assert store.configurations("a") == [{"number": 1}, {"number": 2}, {"number": 10}]


def test_events_can_be_followed(store: Store) -> None:
    for number in range(1, 8):
        store.add_event("a", event(number))
    store.add_event("a", event(7))  # written twice, as after a failure
    assert store.events("a") == [event(number) for number in range(1, 8)]
    assert store.events("a", after=5) == [event(6), event(7)]
    assert store.events("a", after=2, limit=2) == [event(3), event(4)]


def test_events_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.state.embedded.EVENTS_KEPT", 5)
    for number in range(1, 13):
        store.add_event("a", event(number))
    store.add_event("b", event(1))
    assert [kept.number for kept in store.events("a")] == [8, 9, 10, 11, 12]
    assert store.events("b") == [event(1)]


def test_telemetry_is_bounded_and_oldest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.state.embedded.TELEMETRY_KEPT", 5)
    for second in range(12):
        store.add_telemetry("a", TelemetryRecord(second + 1, float(second), {"frames": second}))
    store.add_telemetry("a", TelemetryRecord(12, 11.0, {"frames": 11}))  # written twice, as after a failure
    assert [record.at for record in store.telemetry("a")] == [7.0, 8.0, 9.0, 10.0, 11.0]
    assert store.telemetry("a", limit=2) == [
        TelemetryRecord(11, 10.0, {"frames": 10}),
        TelemetryRecord(12, 11.0, {"frames": 11}),
    ]


def test_what_was_written_outlives_the_process(reopen: Callable[[], Store]) -> None:
    before = reopen()
    before.save_session(session("a"))
    before.add_event("a", event(1))
    before.close()
    again = reopen()
    assert again.session("a") == session("a")
    assert again.events("a") == [event(1)]
    again.close()


def test_threads_may_share_a_store(store: Store) -> None:
    def write(worker: int) -> None:
        for number in range(20):
            store.save_configuration(f"session-{worker}", number, {"n": number})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(store.configurations(f"session-{worker}")) == 20 for worker in range(4))


def test_a_closed_store_says_so(reopen: Callable[[], Store]) -> None:
    closed = reopen()
    closed.close()
    with pytest.raises(StoreError):
        closed.sessions()


# ---- the embedded store's own


def test_a_file_that_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(StoreError, match=r"^state store .*notes\.txt: [^\n]*$"):
        EmbeddedStore(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere"):
        EmbeddedStore(tmp_path / "nowhere" / "state.sqlite")


def test_a_file_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="later release"):
        EmbeddedStore(path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.sqlite")
    store._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreError, match="full"):
        store.save_session(SessionRecord("a", 1.0, "running", {"text": "x" * 1_000_000}))
    store._connection.execute("PRAGMA max_page_count = 10000")
    store.save_session(session("b"))
    assert [record.id for record in store.sessions()] == ["b"]
    store.close()
