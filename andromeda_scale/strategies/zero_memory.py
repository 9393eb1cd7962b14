"""What ZeRO holds beside its states while a step runs, as DeepSpeed 0.19 allocates it. No torch.

Legend: P parameters, N ranks, b elements of a reduce bucket (at most P), w bytes of a compute
element, r bytes of one on its way, k bytes of an accumulated gradient.
"""

from __future__ import annotations

from andromeda_scale.cost.layout import blocks_per_unit
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.strategies import zero_config
from andromeda_scale.strategies.zero_options import Zero3Options, Zero12Options
from andromeda_scale.suite.precision import element_bytes
from andromeda_scale.suite.training import Train

_FP32 = 4
_NORM = 8  # a gradient's norm is taken of a copy in float64
_SUB_GROUP = 1_000_000_000  # elements that stage 3 updates at once, DeepSpeed's default


def stage_1_or_2(
    stage: int, options: Zero12Options, train: Train, shards: int, s: Sizes
) -> Working:
    """A bucket exists from the first gradient of a micro-batch to the last.

    Stage 1 keeps whole gradients until its backward has ended, stage 2 puts each into the bucket.
    A full bucket is copied once to be flat (and once more to change its dtype), and what this rank
    owns is copied out of it.
    """
    w, r, k = _widths(options, train)
    bucket = min(options.reduce_bucket_size, s.parameters)
    buffers = w * bucket * (2 if options.overlap_comm else 1)
    reducing = bucket * (w + (r if r != w else 0))
    owned = k * s.parameters / shards
    accumulates = train.grad_accum > 1 and train.mode != "forward"
    earlier = 0.0
    if accumulates:
        earlier = w * s.parameters if stage == 1 else owned
    table, block = w * s.table, w * s.block
    unreduced = w * s.parameters if stage == 1 else table
    partial = owned if bucket < s.parameters or (accumulates and stage == 2) else 0.0
    ends = [
        buffers + unreduced + (partial if stage == 2 or bucket < s.parameters else 0),
        buffers + reducing + partial,
    ]
    offloaded = options.offload_optimizer
    # The gradients' float32 copy, the parameters' low copy, and a largest tensor on either side.
    host = (_FP32 + w) * s.parameters / shards + w * s.table if offloaded else 0.0
    staging = w * s.table if offloaded else 0.0
    flat = owned + w * s.parameters / shards
    converted = flat + (_FP32 * s.parameters / shards if w != _FP32 else 0)
    return Working(
        loss=staging + earlier,
        head=staging + earlier + buffers + table,
        block=staging + earlier + buffers + table + (block if stage == 1 else 0),
        end=staging + max(ends) + (_NORM * s.table if offloaded else 0),
        update=0.0 if offloaded else max(converted, owned + _NORM * s.table),
        updated_at_once=s.parameters / shards,
        on_host=host,
    )


def stage_3(options: Zero3Options, train: Train, shards: int, device: Device, s: Sizes) -> Working:
    """The bucket and every rank's part of the gradients are made once.

    Small tensors are always gathered, others while they are used again within max_reuse_distance.
    Near the end of forward the prefetcher already looks into backward: it fetches what was let go,
    and keeps what it meets there, up to max_live_parameters.
    """
    w, r, k = _widths(options, train)
    bucket = r * min(options.reduce_bucket_size, s.parameters)
    owned = k * s.parameters / shards
    host = owned + _FP32 * s.parameters / shards if options.offload_optimizer else 0.0
    resting = bucket + (0.0 if options.offload_optimizer else owned)
    # Of a leaf module all weights, and in backward all gradients, are there at once.
    together = zero_config.together(options, train)
    unit = w * blocks_per_unit(together, s.num_blocks, s.block) * s.block if together != 0 else 0.0
    gathered = small = 0.0
    if shards > 1 or options.offload_parameters:
        live = min(options.max_live_parameters, s.parameters) if options.prefetch_bucket_size else 0
        small = w * s.in_small_tensors(options.param_persistence_threshold)
        kept = min(options.max_reuse_distance / 2, s.parameters)
        gathered = max(w * max(live, kept, s.table), unit)
    # The bucket is cut into parts, one a rank (also for one rank), this rank's are cast to what is
    # accumulated, and gloo all-reduces a copy.
    cut: float = bucket * (2 if device == "cpu" and shards > 1 else 1)
    if r != k:
        cut += bucket / r * k / shards
    table = w * s.table
    at_once = min(s.parameters / shards, _SUB_GROUP)
    widened = (k + (_FP32 if k != _FP32 else 0)) * at_once
    return Working(
        loss=resting + gathered,
        head=resting + gathered + table,
        block=resting + gathered + max(table, unit),
        end=resting + small + cut + table,
        update=resting
        + small
        + (0 if options.offload_optimizer else max(widened, _NORM * s.table)),
        updated_at_once=at_once,
        on_host=host,
    )


def _widths(options: Zero12Options | Zero3Options, train: Train) -> tuple[int, int, int]:
    compute = element_bytes(zero_config.compute_dtype(train))
    reduced = element_bytes(zero_config.reduce_dtype(options, train))
    return compute, reduced, element_bytes(zero_config.grad_accum_dtype(options, train))
