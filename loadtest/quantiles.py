"""Quantiles of times, as both reports give them."""


def quantile_ms(seconds: list[float], share: float) -> float | None:
    """The value below which this share of them lies, in ms; None of none."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)
