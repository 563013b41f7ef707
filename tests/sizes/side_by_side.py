"""The same done by several threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from graphc.settings import override


def side_by_side(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Do something for each item, in a thread of its own; the first error of any is raised."""
    failed: list[BaseException] = []

    def run(item: int) -> None:
        try:
            with override(max_recompiles=100):  # of a thread
                work(item)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
