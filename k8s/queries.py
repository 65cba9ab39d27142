"""What dashboard and alerts ask Prometheus: each query once, over metrics that serving/metrics.py has.

Counters are asked for their rate, never for their value: a restart sets them to 0. Quantiles are taken of sums
over all replicas, as quantiles of single replicas cannot be added up.
"""

from __future__ import annotations

# What the dashboard's variables choose among. A Prometheus outside of Kubernetes knows no namespace: all match.
CHOSEN = 'namespace=~"$namespace", model=~"$model"'
VERSION = f'{CHOSEN}, version=~"$version"'
ALL = 'namespace=~"$namespace"'
FAILED = 'status=~"5.."'
WINDOW = "$__rate_interval"


def chosen(metric: str, where: str = VERSION) -> str:
    """Return the series of a metric that have some labels."""
    return f"{metric}{{{where}}}" if where else metric


def rate(counter: str, by: str = "", where: str = VERSION, window: str = WINDOW) -> str:
    """Return the events a second of a counter, over all replicas."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({chosen(counter, where)}[{window}]))"


def increase(counter: str, by: str = "", where: str = VERSION, window: str = WINDOW) -> str:
    """Return the events of a counter within the window, over all replicas."""
    return f"sum{f' by ({by}) ' if by else ''}(increase({chosen(counter, where)}[{window}]))"


def quantile(share: float, histogram: str, by: str = "", where: str = VERSION, window: str = WINDOW) -> str:
    """Return a quantile of a histogram, over all replicas."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, where, window)})"


def mean(histogram: str, by: str = "", where: str = VERSION, window: str = WINDOW) -> str:
    """Return the mean of a histogram, over all replicas."""
    return f"{rate(f'{histogram}_sum', by, where, window)} / {rate(f'{histogram}_count', by, where, window)}"


def share(counter: str, part: str, by: str = "", where: str = VERSION, window: str = WINDOW) -> str:
    """Return which part of a counter has some labels, 0 where none has."""
    all_of_it = rate(counter, by, where, window)
    found = rate(counter, by, f"{where}, {part}" if where else part, window)
    return f"({found} or {all_of_it} * 0) / {all_of_it}"
