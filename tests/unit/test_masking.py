"""What is shown of an address holds no password, however the address was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.masking import masked
from common.state.opening import open_store
from common.state.store import StoreError
from services.cli import _check_store
from services.failure import CannotRun


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:word@db", "redis://:***@db"),
        ("redis://user:pw@db:6379/3", "redis://user:***@db:6379/3"),
        ("redis://user:p/w@rd?x@db:6379/3", "redis://user:***@db:6379/3"),
        ("redis://:hunter2", "redis://:***"),
        ("rediss://db:6380/1?ssl_ca_certs=/ca.pem&password=pw", "rediss://db:6380/1?ssl_ca_certs=/ca.pem&password=***"),
        ("rediss://db/1?ssl_password=pw", "rediss://db/1?ssl_password=***"),
        ("unix:///run/redis.sock?db=2&password=pw", "unix:///run/redis.sock?db=2&password=***"),
        ("https://token@collector:4318/v1/traces", "https://***@collector:4318/v1/traces"),
        ("http://[::1]:4318/", "http://[::1]:4318/"),
        ("tcp://*:5551", "tcp://*:5551"),
        ("/data/a@b:c", "/data/a@b:c"),
    ],
)  # fmt: skip
def test_passwords_are_masked_and_nothing_else(address: str, shown: str) -> None:
    assert masked(address) == shown


LETTERS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=8, max_size=20)


@given(LETTERS, st.sampled_from(["redis", "rediss", "https"]), st.booleans())
def test_no_piece_of_a_password_is_left(word: str, scheme: str, has_user: bool) -> None:
    shown = masked(f"{scheme}://{'user' if has_user else ''}:<{word}>@db:6379/0")
    assert shown == f"{scheme}://{'user' if has_user else ''}:***@db:6379/0"


@pytest.mark.parametrize(
    "address",
    ["redis://user:s3cr3t/word@db/0", "redis://:s3cr3t", "redis:/user:s3cr3t@db/0", "redis://u:s3cr3t@db:port/0",
     "rediss://u:s3cr3t@db/0?ssl_cert_reqs=maybe", "redis://u:s3cr3t@db/0?socket_timeout=long",
     "mysql://u:s3cr3t@db/0"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_told_without_its_password(address: str) -> None:
    def used() -> None:
        open_store(address).sessions()

    with pytest.raises(StoreError) as caught:
        used()
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    _check_store("state.sqlite")
    _check_store("redis://db:6379/0")
    with pytest.raises(CannotRun, match="set CRYOFLUX_STATE") as caught:
        _check_store("redis://user:s3cr3t@db/0")
    assert "s3cr3t" not in str(caught.value)
