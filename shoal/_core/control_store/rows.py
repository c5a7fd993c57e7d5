"""The rows on disk: table names, record types, and their binary form (msgpack, like the wire).

Append fields at the end only, with a default: an older file must stay readable.
"""

from __future__ import annotations

import msgspec

from shoal._core.wire.messages import ActorSpec, Address, Cause, JobConfigRecord, NodeRecord, PlacementGroupRecord

COUNTERS = "counters"
JOBS = "jobs"
NODES = "nodes"
#: Two tables for actors: the spec is written once and may be large, the state is small and changes.
ACTOR_SPECS, ACTORS = "actor_specs", "actors"
GROUPS = "placement_groups"
#: Function id -> blob, and function id + job id -> nothing: blobs of megabytes are written once, however many jobs use them.
FUNCTIONS, FUNCTION_JOBS = "functions", "function_jobs"
KEY_VALUES = "key_values"
#: What makes this the same cluster for its members, whichever machine serves it: tokens, certificate authority.
SECRETS = "secrets"
#: Client + number of the request -> its answer.
ANSWERS = "answers"
#: Actors that were killed, or lost their last handle, before their creation came.
UNWANTED_ACTORS = "unwanted_actors"

NEXT_JOB = b"next_job"
#: How often the control store was started on these tables.
STARTS = b"starts"

encode = msgspec.msgpack.Encoder().encode


class JobRow(msgspec.Struct, array_like=True):
    job_id: bytes
    driver: Address
    pid: int
    namespace: str
    entrypoint: str
    config: JobConfigRecord
    started_at: float
    finished_at: float = 0.0  # 0: running

    @property
    def running(self) -> bool:
        return self.finished_at == 0.0


class ActorRow(msgspec.Struct, array_like=True):
    state: str
    incarnation: int
    restarts: int
    node_id: bytes
    starting: bool
    address: Address | None
    cause: Cause | None
    ending: Cause | None
    interrupted: bool = False
    moves: int = 0


decode_job = msgspec.msgpack.Decoder(JobRow).decode
decode_node = msgspec.msgpack.Decoder(NodeRecord).decode
decode_actor = msgspec.msgpack.Decoder(ActorRow).decode
decode_actor_spec = msgspec.msgpack.Decoder(ActorSpec).decode
decode_group = msgspec.msgpack.Decoder(PlacementGroupRecord).decode
decode_cause = msgspec.msgpack.Decoder(Cause).decode
decode_number = msgspec.msgpack.Decoder(int).decode
decode_key = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
