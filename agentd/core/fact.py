"""What all stored values are made of."""

import msgspec


class Fact(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """A tagged, frozen value that can be stored."""
