"""Rate limits in units of cost, counted per API key, or per address without keys.

A request to a route of the scope `predict` costs one unit on arrival, and the endpoint's declared cost once its body
has been read. A client over its quota waits for the next window, which starts with the first request after the end of
the last one: the fixed window of `limits`, whose counters are O(1).

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
from app.api.http.context import request_context
from app.api.http.security_headers import Header
from app.errors import RateLimited, SettingsError

POLICY: Final = "default"
MAX_CLIENTS: Final = 100_000  # counted in memory; the least recently active one is evicted
ROUNDED_S: Final = 0.5  # Redis returns the end of a window in whole seconds
RETRY_S: Final = 1.0  # before a failed storage is tried again
STORAGE_TIMEOUT_S: Final = 0.25
CONNECTIONS: Final = 32  # to the storage
SCHEMES: Final = ("memory", "redis", "rediss")

log = logging.getLogger(__name__)


class Storage(Protocol):
    """Expiring counters: the used part of the storages of `limits`."""

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add `amount` to the count of `key`, which expires `expiry` seconds after its first; return the count."""
        ...

    async def get_expiry(self, key: str) -> float:
        """Return the time of time.time at which the count expires."""
        ...


class Memory:
    """A Storage in this process; the one of `limits` scans all of its keys at each count."""

    def __init__(self, max_clients: int = MAX_CLIENTS, now: Callable[[], float] = time.time) -> None:
        self._max_clients = max_clients
        self._now = now
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count and end, least recently active first

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to the count of `key`, and return it."""
        now = self._now()
        count, end = self._counts.pop(key, (0, 0.0))
        if end <= now:
            count, end = 0, now + expiry
        self._counts[key] = count + amount, end
        if len(self._counts) > self._max_clients:
            self._counts.popitem(last=False)
        return count + amount

    async def get_expiry(self, key: str) -> float:
        """Return the end of the count's window."""
        return self._counts[key][1] if key in self._counts else self._now()


class Observer(Protocol):
    """Counts events of the rate limiter."""

    def count_rate_limited(self) -> None:
        """Count a rejected request."""
        ...

    def count_rate_storage_error(self) -> None:
        """Count a failure of the storage."""
        ...


@dataclass(frozen=True)
class LimitStatus:
    """A client's remaining units, and the seconds until the quota is reset."""

    remaining: int
    reset_s: int


@dataclass(frozen=True)
class Quota:
    """A number of units of cost per window of seconds."""

    units: int
    window_s: int

    @cached_property
    def policy(self) -> bytes:
        """Return the value of RateLimit-Policy."""
        return f'"{POLICY}";q={self.units};w={self.window_s};qu="cost"'.encode()


class RateLimiter:
    """Counts the cost of each client's requests, in a storage that may be shared with other servers.

    While a shared storage fails, this process counts alone, from zero: no client is rejected for the failure, and
    limits stay in force. The log and a metric report it.
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
        self._failures = failures  # errors of an unreachable storage
        self._close = close
        self._now = now
        self._fallback = Memory(now=now)
        self._broken_until: float | None = None
        self._ends: OrderedDict[str, float] = (
            OrderedDict()
        )  # known ends of windows, which save a second call of the storage

    async def charge(self, client: str, cost: int) -> LimitStatus:
        """Count `cost` units. Raise RateLimited, and count none, if the client would exceed its quota."""
        count, end = await self._count(client, cost)
        reset_s = max(1, math.ceil(end - self._now() + ROUNDED_S))
        if count > self.quota.units:
            await self._count(client, -cost)
            self._observer.count_rate_limited()
            raise RateLimited(
                f"expected at most {self.quota.units} units of cost in {self.quota.window_s} s, found {count}; "
                f"try again in {reset_s} s",
                retry_after=reset_s,
                remaining=max(0, self.quota.units - count + cost),
            )
        return LimitStatus(self.quota.units - count, reset_s)

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._close:
            await self._close()

    async def _count(self, client: str, cost: int) -> tuple[int, float]:
        if self._broken_until is None or self._now() >= self._broken_until:
            try:
                counted = await self._count_in(self._storage, client, cost)
            except self._failures as error:
                self._fail(error)
            else:
                self._recover()
                return counted
        return await self._count_in(self._fallback, client, cost)

    async def _count_in(self, storage: Storage, client: str, cost: int) -> tuple[int, float]:
        """Return the count and the end of its window."""
        key = f"{client}/{self.quota.units}/{self.quota.window_s}"  # another quota is another count
        count = await storage.incr(key, self.quota.window_s, cost)
        end = self._ends.get(client, 0.0)
        if count == cost or end <= self._now():  # a new window, or one that another server started
            end = self._ends[client] = await storage.get_expiry(key)
            if len(self._ends) > MAX_CLIENTS:
                self._ends.popitem(last=False)
        return count, end

    def _fail(self, error: Exception) -> None:
        self._observer.count_rate_storage_error()
        if self._broken_until is None:
            log.error("the rate limit storage failed; this process counts alone meanwhile: %s", error)
            self._ends.clear()
        self._broken_until = self._now() + RETRY_S

    def _recover(self) -> None:
        if self._broken_until is not None:
            log.info("the rate limit storage has recovered")
            self._broken_until = None
            self._ends.clear()


class RateLimiting:
    """Middleware that charges requests to routes of the scope `predict`, and adds the rate limit headers."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Charge the base cost of one request; its endpoint charges the rest."""
        if scope["type"] != "http" or (context := request_context(scope)).required != "predict":
            await self.app(scope, receive, send)
            return
        context.charge = Charge(self._limiter, client_id(context.key, scope.get("client")))
        context.response_headers.append(context.charge.headers)
        try:
            await context.charge.add(1)
        except RateLimited as error:
            await bodies.reject(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Charge:
    """The cost of one request, charged to its client as it becomes known."""

    def __init__(self, limiter: RateLimiter, client: str) -> None:
        self._limiter = limiter
        self._client = client
        self._status = LimitStatus(0, 0)
        self._charged = 0

    async def add(self, cost: int) -> None:
        """Charge `cost` units more, a whole quota at most. Raise RateLimited if the client would exceed its quota."""
        cost = min(cost, self._limiter.quota.units - self._charged)
        self._charged += cost
        try:
            self._status = await self._limiter.charge(self._client, cost)
        except RateLimited as error:
            self._status = LimitStatus(error.remaining, error.retry_after)
            raise

    def headers(self) -> list[Header]:
        """Return RateLimit-Policy and RateLimit with the client's current status."""
        status = f'"{POLICY}";r={self._status.remaining};t={self._status.reset_s}'
        return [(b"ratelimit-policy", self._limiter.quota.policy), (b"ratelimit", status.encode())]


def client_id(key: str | None, client: tuple[str, int] | None) -> str:
    """Return the id that a client is counted by: its key's name or its address, an IPv6 one by its /64 network."""
    return f"key:{key}" if key else _network((client or ("", 0))[0])


@lru_cache(1024)
def _network(host: str) -> str:
    try:
        found = address(host)
    except ValueError:
        return f"address:{host[:64]}"
    network = ipaddress.ip_network(f"{found}/{64 if found.version == 6 else 32}", strict=False)
    return f"address:{network.network_address}"


def parse(limit: str) -> Quota:
    """Parse a quota such as `600/minute` or `100 per 10 seconds`. Raise SettingsError if it is invalid."""
    import limits  # slow to import, and unused by most servers

    try:
        (item,) = limits.parse_many(limit)
        if not item.amount:
            raise ValueError("nothing is allowed")
    except ValueError as error:
        raise SettingsError(f"SEQSERVE_RATE_LIMIT: expected one rate like 600/minute, found {limit[:80]!r}") from error
    return Quota(item.amount, item.get_expiry())


def open_limiter(limit: str, storage: str, observer: Observer) -> RateLimiter:
    """Return a limiter that counts in memory:// or redis://host:port/db. Raise SettingsError for another storage."""
    quota = parse(limit)
    scheme = urlsplit(storage).scheme
    if scheme not in SCHEMES:
        raise SettingsError(f"SEQSERVE_RATE_STORAGE: expected {', '.join(SCHEMES)}://…, found {scheme[:80]!r}")
    if scheme == "memory":
        return RateLimiter(quota, Memory(), observer)
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
    return RateLimiter(quota, shared, observer, failures=(RedisError, OSError, TimeoutError), close=pool.aclose)
