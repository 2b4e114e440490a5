"""What every state store promises; a further kind of store joins by one fixture in ``KINDS``."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.state.embedded import EmbeddedStore
from common.state.opening import open_store
from common.state.redis import Keys, RedisStore
from common.state.store import EventRecord, SessionRecord, Store, StoreError, TelemetryRecord
from services.supervisor import free_port
from tests.redis_server import RedisServer

KINDS = ("sqlite", "redis")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def redis_url(server: RedisServer) -> str:
    with server.client() as client:
        client.flushall()
    return server.url


@pytest.fixture(params=KINDS)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the same store again whenever it is called."""
    address = str(tmp_path / "state.sqlite")
    if request.param == "redis":
        address = request.getfixturevalue("redis_url")
    return lambda: open_store(address)


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
    for kind in ("embedded", "redis"):
        monkeypatch.setattr(f"common.state.{kind}.EVENTS_KEPT", 5)
    for number in range(1, 13):
        store.add_event("a", event(number))
    store.add_event("b", event(1))
    assert [kept.number for kept in store.events("a")] == [8, 9, 10, 11, 12]
    assert store.events("b") == [event(1)]


def test_telemetry_is_bounded_and_oldest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("embedded", "redis"):
        monkeypatch.setattr(f"common.state.{kind}.TELEMETRY_KEPT", 5)
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


def test_awkward_text_comes_back_as_it_was(store: Store) -> None:
    awkward = "\x00 \r\n 'quoted\" Å é 🜁 %s"
    store.save_session(SessionRecord("a", 1.5, "failed", {"error": awkward, awkward: [awkward]}))
    store.add_event("a", EventRecord(1, 1.25, "control", awkward, "note", awkward, {awkward: awkward}))
    store.add_telemetry("a", TelemetryRecord(1, 1e9 + 1 / 3, {awkward: 1 / 3}))
    known = store.session("a")
    assert known is not None
    assert known.document == {"error": awkward, awkward: [awkward]}
    assert store.events("a")[0].details == {awkward: awkward}
    assert store.telemetry("a") == [TelemetryRecord(1, 1e9 + 1 / 3, {awkward: 1 / 3})]


def test_a_session_is_rewritten_as_a_whole(store: Store) -> None:
    for number in (3, 4, 5):  # what was written after the store had forgotten the rest
        store.add_event("a", event(number))
        store.add_telemetry("a", TelemetryRecord(number, float(number), {}))
    store.save_configuration("a", 2, {"number": 2})
    store.save_session(session("b"))
    store.add_event("b", event(1))
    events = [event(number) for number in range(1, 6)]
    points = [TelemetryRecord(number, float(number), {"n": number}) for number in range(1, 6)]
    for _ in range(2):
        store.rewrite(session("a"), [{"number": 1}], events, points)
        assert store.session("a") == session("a")
        assert store.configurations("a") == [{"number": 1}]
        assert store.events("a") == events
        assert store.telemetry("a") == points
    store.add_event("a", event(6))
    assert [kept.number for kept in store.events("a", after=4)] == [5, 6]
    assert store.session("b") == session("b")
    assert store.events("b") == [event(1)]


def test_a_whole_history_is_rewritten_within_the_bounds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("embedded", "redis"):
        monkeypatch.setattr(f"common.state.{kind}.EVENTS_KEPT", 3)
        monkeypatch.setattr(f"common.state.{kind}.TELEMETRY_KEPT", 2)
    points = [TelemetryRecord(number, float(number), {}) for number in range(1, 8)]
    store.rewrite(session("a"), [], [event(number) for number in range(1, 8)], points)
    assert [kept.number for kept in store.events("a")] == [5, 6, 7]
    assert [kept.number for kept in store.telemetry("a")] == [6, 7]


def test_a_store_that_forgets_nothing_stays_in_its_epoch(store: Store) -> None:
    epoch = store.epoch
    store.save_session(session("a"))
    store.save_session(session("a"))
    store.add_event("a", event(1))
    assert store.epoch == epoch


# ---- which store an address means


def test_an_address_decides_the_store(tmp_path: Path, server: RedisServer) -> None:
    for address, kind in (
        (str(tmp_path / "a.sqlite"), EmbeddedStore),
        (server.url, RedisStore),
        ("unix:///nowhere/redis.sock?db=2", RedisStore),
        ("rediss://user:secret@host:6380/1", RedisStore),
    ):
        store = open_store(address)
        assert type(store) is kind
        store.close()


@pytest.mark.parametrize("address", ["mysql://host/db", "redis:host:6379", "http://x", "sqlite:///file"])
def test_what_is_no_store_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(StoreError, match=r"^state: .* is no state store; name a file, or redis://[^\n]*$"):
        open_store(address)


@pytest.mark.parametrize("address", ["redis://host:port", "redis://host:6379?protocol=x&socket_timeout=y"])
def test_an_address_of_no_server_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(StoreError, match=r"^state store [^\n]*$"):
        open_store(address)


# ---- the Redis store's own


def test_a_server_that_is_not_there_is_an_error_in_one_line_only_when_it_is_needed() -> None:
    port = free_port("127.0.0.1")
    store = RedisStore(f"redis://:secret@127.0.0.1:{port}/0")
    told = r"^state store redis://:\*\*\*@127\.0\.0\.1:\d+/0: [^\n]*refused[^\n]*$"
    with pytest.raises(StoreError, match=told):
        store.sessions()
    store.close()


def test_a_wrong_password_is_said_to_be_one(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as secured:
        with secured.client() as client:
            client.config_set("requirepass", "right")
        store = RedisStore(secured.url.replace("redis://", "redis://:wrong@"))
        with pytest.raises(StoreError, match=r"(?i)password|auth"):
            store.save_session(session("a"))
        store.close()
        store = RedisStore(secured.url.replace("redis://", "redis://:right@"))
        store.save_session(session("a"))
        store.close()


def test_a_frozen_server_costs_no_more_than_the_timeout(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as frozen:
        store = RedisStore(frozen.url, timeout_seconds=0.3)
        store.save_session(session("a"))
        frozen.freeze()
        for ask in (lambda: store.epoch, lambda: store.add_event("a", event(1)), store.sessions):
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"(?i)time"):
                ask()
            assert time.monotonic() - began < 3.0  # ten times the timeout
        frozen.thaw()
        assert store.sessions() == [session("a")]
        store.close()


def test_a_server_started_anew_is_another_epoch(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = RedisStore(server.url)
        store.save_session(session("a"))
        epoch = store.epoch
        server.save()
        server.kill()
        server.start()
        asked = None
        for _ in range(2):  # the first may find its connection broken
            try:
                asked = store.epoch
            except StoreError:
                continue
        assert asked not in (None, epoch)
        assert store.sessions() == [session("a")]
        assert store.epoch == asked
        store.close()


def test_keys_that_were_deleted_are_another_epoch(redis_url: str, server: RedisServer) -> None:
    store = RedisStore(redis_url)
    store.save_session(session("a"))
    epoch = store.epoch
    with server.client() as client:
        client.flushall()
    store.save_session(session("a"))
    assert store.epoch != epoch
    store.close()


def test_a_later_layout_is_left_alone(redis_url: str, server: RedisServer) -> None:
    with server.client() as client:
        client.set(Keys.version, "99")
    store = RedisStore(redis_url)
    with pytest.raises(StoreError, match="later release"):
        store.save_session(session("a"))
    store.close()
    with server.client() as client:
        assert client.keys("*") == [Keys.version]


def test_a_full_server_is_a_store_error(redis_url: str, server: RedisServer) -> None:
    store = RedisStore(redis_url)
    store.save_session(session("a"))
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="maxmemory"):
            store.save_session(session("b"))
        client.config_set("maxmemory", "0")
    store.save_session(session("b"))
    store.close()


def test_every_key_has_the_prefix(redis_url: str, server: RedisServer) -> None:
    store = RedisStore(redis_url)
    store.rewrite(session("a"), [{}], [event(1)], [TelemetryRecord(1, 1.0, {})])
    with server.client() as client:
        assert sorted(client.keys("*")) == sorted(  # pyright: ignore
            f"cryoflux:{name}"
            for name in ("sessions", "session:a", "session:a:configurations", "session:a:events",
                         "session:a:telemetry", "version")
        )  # fmt: skip
    store.close()


# ---- the embedded store's own


def test_a_file_of_the_release_before_is_taken_over_but_for_its_telemetry(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    EmbeddedStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE telemetry")
    connection.execute("CREATE TABLE telemetry (session TEXT, at REAL, document TEXT)")
    connection.execute("INSERT INTO telemetry VALUES ('a', 1.0, '{}')")
    connection.execute("INSERT INTO sessions VALUES ('a', 1.0, 'completed', '{}')")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = EmbeddedStore(path)
    assert [record.id for record in store.sessions()] == ["a"]
    assert store.telemetry("a") == []
    store.add_telemetry("a", TelemetryRecord(1, 2.0, {}))
    assert store.telemetry("a") == [TelemetryRecord(1, 2.0, {})]
    store.close()


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
