"""What the process counts about its own requests."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Figures:
    """Requests by route, method and status. Routes are templates, so that callers cannot invent labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "convergence_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "convergence_http_request_seconds", "Time to answer.", ["method", "route"], registry=self.registry
        )
        self._refused = Counter(
            "convergence_http_refused", "Requests beyond a limit, by what it counts.", ["kind"], registry=self.registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def refused(self, kind: str) -> None:
        """Count one request beyond a limit: `customer`, `source`, `sender`; of wrong keys: `api_key`, `admin_key`."""
        self._refused.labels(kind).inc()
