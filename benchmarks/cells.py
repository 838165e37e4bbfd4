"""Values of result files, numbers or their texts, as cells of tables; what is missing is empty."""


def spread(row, field) -> str:
    """Mean ± standard deviation of a row's `field`; the mean alone without any `field_spread`."""
    mean, deviation = ratio(row.get(field), 3), ratio(row.get(f"{field}_spread"), 3)
    return f"{mean} ± {deviation}" if deviation else mean


def milliseconds(value) -> str:
    """With one decimal below ten, else without."""
    return ratio(value, 1 if value not in (None, "") and float(value) < 10 else 0)


def ratio(value, digits) -> str:
    """With so many decimals."""
    return "" if value in (None, "") else f"{float(value):,.{digits}f}"
