"""Where to ask for a primary, and how the answers are read."""

import pytest

from relay.errors import Misconfigured
from relay.settings import Settings
from relay.where import Where, spreads, where

SLOTS = [
    [0, 8000, [b"10.0.0.1", 7001, b"id"], [b"10.0.0.4", 7004, b"id"]],
    [8001, 16383, [b"10.0.0.2", 7002, b"id"], [b"10.0.0.5", 7005, b"id"]],
]
"""Of a cluster: the slot of shard 0 is 13907, that of shard 3 is 1584."""


def found(url: str, shard: int = 0) -> Where:
    place = where(url, shard)
    assert place is not None
    return place


def test_a_plain_url_says_where() -> None:
    assert where("redis://host:1/0", 0) is where("unix:///run/redis.sock", 0) is None


def test_sentinels_are_asked_for_their_service_with_their_own_password() -> None:
    place = found("rediss+sentinel://u:p%40@a,b:2/main/3?sentinel_password=s%2Fs&ssl_ca_certs=ca.pem&x=1")
    assert place.url == "rediss://u:p%40@a:26379/3?ssl_ca_certs=ca.pem&x=1"
    assert place.knowing == [f"rediss://:s%2Fs@{host}/?ssl_ca_certs=ca.pem" for host in ("a:26379", "b:2")]
    assert place.question == ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
    assert place.read([b"10.0.0.7", b"6380"]) == ("10.0.0.7", 6380)
    assert place.read(None) is None


def test_a_cluster_is_asked_for_the_slot_of_the_shard() -> None:
    url = "redis+cluster://u:p@a:1,[::1]:2,c"
    place = found(url)
    assert place.knowing == ["redis://u:p@a:1/", "redis://u:p@[::1]:2/", "redis://u:p@c:6379/"]
    assert (place.url, place.question) == (place.knowing[0], ("CLUSTER", "SLOTS"))
    assert [found(url, shard).read(SLOTS) for shard in (0, 3)] == [("10.0.0.2", 7002), ("10.0.0.1", 7001)]
    assert place.read(SLOTS[:1]) is None, "nobody has the slot"
    assert place.read([[0, 16383, [b"", 7001, b"id"]]]) is None, "it does not know its own name"


def test_only_a_cluster_spreads_shards_over_servers() -> None:
    urls = ("redis://h/0", "redis+sentinel://h/main", "redis+cluster://h", "rediss+cluster://h")
    assert [spreads(url) for url in urls] == [False, False, True, True]


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1,b:2",
        "redis+sentinel://a:1,b:2/",
        "redis+sentinel://a:1,,b:2/main",
        "redis+cluster://a:1,b:port",
        "redis+cluster://a:1/1",
        "redis+nonsense://a:1",
    ],
)
def test_what_is_not_understood_is_said_without_what_it_was(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"redis\+cluster://host:port,host:port") as said:
        where(url.replace("//", "//user:canary@"), 0)
    assert "canary" not in str(said.value)
    with pytest.raises(ValueError, match="REDIS_URL is not understood"):
        Settings(redis_url=url)
