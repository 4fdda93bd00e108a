"""Numbers as text, alike in tables, captions and sentences."""

MINUS = "−"  # as wide as a plus, so that signed columns align


def percent(value: float, digits: int = 1) -> str:
    """0.585 as 58.5: a share in percent, the sign of which stands in the header or beside it."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """0.2 as +20.0: a difference of shares in percentage points."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def number(value: object) -> str:
    """A number of unknown size; fractions with three digits, so that a column aligns."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3f}".replace("-", MINUS)


def plain_number(value: float) -> str:
    """The shortest usual way to write a tick: 0.25, 3, 1,500, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def brief(value: float) -> str:
    """Three digits, for a caption: 0.0631, 5.45, 5,450."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def seconds(value: float) -> str:
    return f"{value:,.1f}"


def duration(value: float) -> str:
    """4 s, 2 min 5 s, 3 h 20 min."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def distance(value: float) -> str:
    """A relative distance of weights: 0.0524 as in the paper, 9.5e-05 where four decimals would hide it."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"
