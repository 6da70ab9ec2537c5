"""Which variables hold a secret, as far as their names tell."""

MARKS = ("KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL")


def is_secret(name: str) -> bool:
    return any(mark in name.upper() for mark in MARKS)
