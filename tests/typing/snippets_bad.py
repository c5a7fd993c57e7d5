"""What type checkers must refuse: each marked line is an error, no other is. Never run."""

from __future__ import annotations

import shoal
from shoal import ObjectRef


@shoal.remote
def length(text: str) -> int:
    return len(text)


wrong: ObjectRef[str] = length.remote("a")  # error
number: str = shoal.get(length.remote("a"))  # error
shoal.get(3)  # error
shoal.wait(length.remote("a"))  # error
shoal.init(num_cpus="four")  # error
print(shoal.nothing)  # error
print(shoal.util.nothing)  # error
