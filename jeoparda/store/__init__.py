"""The store: a folder of HDF5 shards that a training run reads one patch, one read.

`format` says what the files hold, `writer` makes them, `reader` opens them. h5py stays in here.
"""

from jeoparda.store.format import Band, Group, PatchRecord, StoreInfo, group_records, record_dtype
from jeoparda.store.reader import Store
from jeoparda.store.writer import Shard, finalise, write_shard

__all__ = [
    "Band",
    "Group",
    "PatchRecord",
    "Shard",
    "Store",
    "StoreInfo",
    "finalise",
    "group_records",
    "record_dtype",
    "write_shard",
]
