"""How much a caller may ask in a time: units of cost, counted per key, or per address where there are no keys.

A request of a route that needs the scope `predict` costs 1 when it arrives, and once its body has been read what
`app.api.http.bodies` charges for its texts or images. A client over its quota waits for the next window, which starts
with the first request after the last one's end: the fixed window of `limits`, whose counters are O(1).

Headers are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http import bodies
from app.api.http.authorization import address
from app.errors import RateLimited, SettingsError

POLICY: Final = "default"
MOST_CALLERS: Final = 100_000  # counted in memory at once; the one that has been quiet longest is forgotten
ROUNDED_S: Final = 0.5  # Redis tells the end of a window in whole seconds
RETRY_S: Final = 1.0  # until a storage that failed is asked again
STORAGE_TIMEOUT_S: Final = 0.25
CONNECTIONS: Final = 32  # to the storage
SCHEMES: Final = ("memory", "redis", "rediss")

log = logging.getLogger(__name__)


class Storage(Protocol):
    """Counters that begin anew some time after their first count: the part of limits' storages that is used."""

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """The count of `key`, `amount` more; it begins anew `expiry` seconds after its first."""
        ...

    async def get_expiry(self, key: str) -> float:
        """The time of time.time at which the count begins anew."""
        ...


class Memory:
    """A Storage in this process; that of limits looks through all of its keys at each count."""

    def __init__(self, most: int = MOST_CALLERS, now: Callable[[], float] = time.time) -> None:
        self._most = most
        self._now = now
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # the count and its end, quietest first

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """As Storage has it."""
        now = self._now()
        count, end = self._counts.pop(key, (0, 0.0))
        if end <= now:
            count, end = 0, now + expiry
        self._counts[key] = count + amount, end
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count + amount

    async def get_expiry(self, key: str) -> float:
        """As Storage has it."""
        return self._counts[key][1] if key in self._counts else self._now()


class Observer(Protocol):
    """Is told what becomes of rates."""

    def count_rate_limited(self) -> None:
        """A request was refused."""
        ...

    def count_rate_storage_error(self) -> None:
        """The storage gave no answer."""
        ...


@dataclass(frozen=True)
class Standing:
    """Where a caller stands: what is left, until in so many seconds it is all there again."""

    remaining: int
    reset_s: int


@dataclass(frozen=True)
class Quota:
    """So many units of cost in so many seconds."""

    units: int
    window_s: int

    @cached_property
    def policy(self) -> bytes:
        """The value of RateLimit-Policy."""
        return f'"{POLICY}";q={self.units};w={self.window_s};qu="cost"'.encode()


class Rates:
    """Counts what callers ask for, in a storage that may be shared with other servers.

    While a shared storage gives no answer, this process counts by itself, from nothing: nobody is turned away for it,
    and nobody is let off altogether. The log and a metric tell.
    """

    def __init__(
        self,
        quota: Quota,
        storage: Storage,
        observer: Observer,
        *,
        failures: tuple[type[Exception], ...] = (),
        close: Callable[[], Awaitable[None]] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.quota = quota
        self._storage = storage
        self._observer = observer
        self._failures = failures  # what a storage raises when it can't be reached
        self._close = close
        self._now = now
        self._spare = Memory(now=now)
        self._broken_until: float | None = None
        self._ends: OrderedDict[str, float] = OrderedDict()  # of windows, as far as known: a storage isn't asked twice

    async def charge(self, caller: str, cost: int) -> Standing:
        """Count `cost` units. Raise RateLimited, and count none, where the caller would be over the quota."""
        count, end = await self._count(caller, cost)
        reset_s = max(1, math.ceil(end - self._now() + ROUNDED_S))
        if count > self.quota.units:
            await self._count(caller, -cost)
            self._observer.count_rate_limited()
            raise RateLimited(
                f"expected at most {self.quota.units} units of cost in {self.quota.window_s} s, found {count}; "
                f"try again in {reset_s} s",
                retry_after=reset_s,
                remaining=max(0, self.quota.units - count + cost),
            )
        return Standing(self.quota.units - count, reset_s)

    async def close(self) -> None:
        """Leave no connection to the storage open."""
        if self._close:
            await self._close()

    async def _count(self, caller: str, cost: int) -> tuple[int, float]:
        if self._broken_until is None or self._now() >= self._broken_until:
            try:
                counted = await self._count_in(self._storage, caller, cost)
            except self._failures as error:
                self._fail(error)
            else:
                self._mend()
                return counted
        return await self._count_in(self._spare, caller, cost)

    async def _count_in(self, storage: Storage, caller: str, cost: int) -> tuple[int, float]:
        """The count and the time at which it begins anew."""
        key = f"{caller}/{self.quota.units}/{self.quota.window_s}"  # another quota is another count
        count = await storage.incr(key, self.quota.window_s, cost)
        end = self._ends.get(caller, 0.0)
        if count == cost or end <= self._now():  # a new window, or one that another server began
            end = self._ends[caller] = await storage.get_expiry(key)
            if len(self._ends) > MOST_CALLERS:
                self._ends.popitem(last=False)
        return count, end

    def _fail(self, error: Exception) -> None:
        self._observer.count_rate_storage_error()
        if self._broken_until is None:
            log.error("the storage of rates gives no answer; this process counts by itself meanwhile: %s", error)
            self._ends.clear()
        self._broken_until = self._now() + RETRY_S

    def _mend(self) -> None:
        if self._broken_until is not None:
            log.info("the storage of rates answers again")
            self._broken_until = None
            self._ends.clear()


class Rated:
    """Requests that need the scope `predict` are charged to their caller; responses tell where that one stands."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self.app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Charge one request for having come; the guard charges the rest."""
        if scope["type"] != "http" or scope["state"].get("needed") != "predict":
            await self.app(scope, receive, send)
            return
        bill = Bill(self._rates, caller(scope))
        scope["state"]["bill"] = bill
        scope["state"]["more_headers"].append(bill.headers)
        try:
            await bill.charge(1)
        except RateLimited as error:
            await bodies.refuse(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Bill:
    """What one request costs its caller."""

    def __init__(self, rates: Rates, caller: str) -> None:
        self._rates = rates
        self._caller = caller
        self._standing = Standing(0, 0)
        self._charged = 0

    async def charge(self, cost: int) -> None:
        """Raise RateLimited if it is too much; a request never costs more than the whole quota."""
        cost = min(cost, self._rates.quota.units - self._charged)
        self._charged += cost
        try:
            self._standing = await self._rates.charge(self._caller, cost)
        except RateLimited as error:
            self._standing = Standing(error.remaining, error.retry_after)
            raise

    def headers(self) -> list[tuple[bytes, bytes]]:
        """RateLimit-Policy and RateLimit, as the caller stands now."""
        standing = f'"{POLICY}";r={self._standing.remaining};t={self._standing.reset_s}'
        return [(b"ratelimit-policy", self._rates.quota.policy), (b"ratelimit", standing.encode())]


def caller(scope: Scope) -> str:
    """By the name of its key, else by its address; who has an IPv6 address has the 2^64 beside it as well."""
    if name := scope["state"].get("key"):
        return f"key:{name}"
    return _place((scope.get("client") or ("", 0))[0])


@lru_cache(1024)  # who asks asks again
def _place(host: str) -> str:
    try:
        found = address(host)
    except ValueError:
        return f"address:{host[:64]}"
    network = ipaddress.ip_network(f"{found}/{64 if found.version == 6 else 32}", strict=False)
    return f"address:{network.network_address}"


def parse(limit: str) -> Quota:
    """The quota that a text as `600/minute` or `100 per 10 seconds` asks for. Raise SettingsError if it is none."""
    import limits  # takes a while, and most servers limit no rates

    try:
        (item,) = limits.parse_many(limit)
        if not item.amount:
            raise ValueError("nothing is allowed")
    except ValueError as error:
        raise SettingsError(f"SEQSERVE_RATE_LIMIT: expected one rate like 600/minute, found {limit[:80]!r}") from error
    return Quota(item.amount, item.get_expiry())


def open_rates(limit: str, storage: str, observer: Observer) -> Rates:
    """Rates of this limit, counted in memory:// or in redis://host:port/db. Raise SettingsError for another storage."""
    quota = parse(limit)
    scheme = urlsplit(storage).scheme
    if scheme not in SCHEMES:
        raise SettingsError(f"SEQSERVE_RATE_STORAGE: expected {', '.join(SCHEMES)}://…, found {scheme[:80]!r}")
    if scheme == "memory":
        return Rates(quota, Memory(), observer)
    from limits.aio.storage import RedisStorage
    from redis.asyncio import BlockingConnectionPool
    from redis.exceptions import RedisError

    pool: Any = BlockingConnectionPool.from_url(
        storage,
        max_connections=CONNECTIONS,
        timeout=STORAGE_TIMEOUT_S,
        socket_timeout=STORAGE_TIMEOUT_S,
        socket_connect_timeout=STORAGE_TIMEOUT_S,
    )
    shared = RedisStorage(f"async+{storage}", implementation="redispy", key_prefix="seqserve", connection_pool=pool)
    return Rates(quota, shared, observer, failures=(RedisError, OSError, TimeoutError), close=pool.aclose)
