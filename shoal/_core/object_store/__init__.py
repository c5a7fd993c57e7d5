"""The shared memory of one node, and the disk behind it.

    node agent's process                                            worker, driver
    store.py      who may create, read, free (messages 30-37)  <->  client.py     asks, writes, reads, gives back
      entries.py    its records                                       arena.py      the mapped memory file
      residence.py  what is where, and what becomes of it             mapping.py    libc calls, views that tell when they die
      admission.py  whose turn it is     (pure)
      allocation.py which range          (pure)
      eviction.py   which object leaves  (pure)
      spilling.py   which file, where    (pure)
      disk.py       files on this machine
      remote.py     files behind a URL
      threads.py    in which both are read and written
      warming.py    the thread that readies pages ahead of use

    this node                                                       another node
    pulling.py    fetches objects into the store               <->  serving.py    gives objects away
      pulls.py      which, when, from whom  (pure)                    uploads.py    to whom, who is sent on; who has copies  (pure)
      links.py      a connection and its thread                       transfer.py   what is said on the socket, and its reads and writes
      inside.py     the store's own process as one of its clients

Owns: ranges of the arena, pins, spill files, the order of requests for room, what moves between nodes.
Must not know: what the bytes mean, who borrows references, tasks.
"""

from __future__ import annotations

from shoal._core.object_store.arena import Arena, ArenaClosed
from shoal._core.object_store.client import Place, StoreClient
from shoal._core.object_store.disk import Disk, DiskUsage
from shoal._core.object_store.entries import StoredObject, StoreStatistics
from shoal._core.object_store.store import ObjectStore

__all__ = ["Arena", "ArenaClosed", "Disk", "DiskUsage", "ObjectStore", "Place", "StoreClient", "StoreStatistics", "StoredObject"]
