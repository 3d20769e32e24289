"""The store: a folder of HDF5 shards that a training run reads one patch, one read.

`format` says what the files hold, `writer` makes them, `reader` opens them, `codec` is how they are compressed, `check`
finds what is damaged. h5py stays in here.
"""

from jeoparda.store.check import Damage, damaged, labels_of
from jeoparda.store.codec import check_compression, codec_version, crc32, decoded
from jeoparda.store.format import (
    DTYPES,
    SPLITS,
    Band,
    Compression,
    Contents,
    Group,
    Layout,
    PatchRecord,
    Reject,
    ShardInfo,
    StoreInfo,
    group_records,
)
from jeoparda.store.reader import Store, salvaged, shard_sums
from jeoparda.store.statistics import statistics_of, valid_of
from jeoparda.store.writer import Shard, finalise, finished, of_another_plan, plan_of, shard_path, write_shard

__all__ = [
    "DTYPES",
    "SPLITS",
    "Band",
    "Compression",
    "Contents",
    "Damage",
    "Group",
    "Layout",
    "PatchRecord",
    "Reject",
    "Shard",
    "ShardInfo",
    "Store",
    "StoreInfo",
    "check_compression",
    "codec_version",
    "crc32",
    "damaged",
    "decoded",
    "finalise",
    "finished",
    "group_records",
    "labels_of",
    "of_another_plan",
    "plan_of",
    "salvaged",
    "shard_path",
    "shard_sums",
    "statistics_of",
    "valid_of",
    "write_shard",
]
