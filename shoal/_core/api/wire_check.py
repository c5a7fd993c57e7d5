"""A record that users' values went into must be one that the other side can read: a peer that cannot read a message ends the connection."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def checked_record(record: T, whose: str) -> T:
    """Return ``record`` if its receiver will be able to decode it. Made once per set of options, never per call.

    Args:
        whose: whose values these are, for the message: "the options of f".

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a number is too large for 64 bits, or a string holds characters that cannot be sent.
    """
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=type(record))
    except OverflowError:
        raise ValueError(f"A number in {whose} is too large: 64 bits are the limit.") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"A string in {whose} holds characters that cannot be sent: {error}.") from None
    except msgspec.ValidationError as error:
        raise TypeError(f"A value in {whose} has the wrong type: {error}.") from None
    return record
