"""What processes may not send each other."""

from typing import Any


def refuse_objects() -> None:
    """From now on, a message of another process that had to be unpickled is an error."""
    from torch.distributed import distributed_c10d

    def refused(*_: Any) -> None:
        raise AssertionError("a pickled message")

    assert distributed_c10d._tensor_to_object  # through which torch unpickles all of them
    distributed_c10d._tensor_to_object = refused
