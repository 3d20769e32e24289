"""Other loaders, each over files of its own of the same patches: `PYTHON -m benchmarks.feed.peers WHO STORE [JSON]`.

Runs in an interpreter of its own, without jeoparda and DALI; peers.txt beside this file says how it is made. Files
are made and read as the peer's own manual shows it, by two workers, and kept beside the jeoparda store.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.feed.measure import Epoch, serve

BATCH = 64
WORKERS = 2

Sample = dict[str, Any]  # the fields of the store's layout as arrays, and "labels", (class,) float32
Work = Callable[[Sample], Sample]


def patches(store: Path) -> Iterator[tuple[str, Sample]]:
    """(id, sample) of every patch, by plain HDF5."""
    for path in sorted((store / "shards").glob("*.h5")):
        with h5py.File(path, "r") as f:
            for record, row, labels in zip(f["patches"][:], f["table"]["id"], f["labels"][:], strict=True):
                fields = {name: np.ascontiguousarray(record[name]) for name in record.dtype.names}
                yield row.decode(), fields | {"labels": labels.astype(np.float32)}


class Normalised:
    """Of a store whose bands all have one size: {"image": (band, row, col) float32, "labels"}."""

    def __init__(self, store: Path) -> None:
        bands = json.loads((store / "store.json").read_text())["statistics"].values()
        self._mean = torch.tensor([b["mean"] for b in bands])[:, None, None]
        self._scale = 1 / torch.tensor([b["std"] for b in bands])[:, None, None]

    def __call__(self, sample: Sample) -> Sample:
        image = torch.as_tensor(sample["10m"]).to(torch.float32).sub_(self._mean).mul_(self._scale)
        return {"image": image, "labels": sample["labels"]}


def as_it_is(sample: Sample) -> Sample:
    return sample


# ---- LitData: chunks of 64 MB, shuffled by chunk and within it; each item decoded by itself, because by default it
# decodes the item's neighbours as well and drops them, and is then 12 times slower


def make_litdata(store: Path, out: Path) -> None:
    from litdata.streaming import Cache  # type: ignore

    cache = Cache(str(out), chunk_bytes="64MB")
    for i, (_, sample) in enumerate(patches(store)):
        cache[i] = sample
    cache.done()
    cache.merge()


def litdata(out: Path, work: Work, keep: bool) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset  # type: ignore

    class Worked(StreamingDataset):
        def __getitem__(self, index: Any) -> Sample:
            return work(super().__getitem__(index))

    dataset = Worked(str(out), shuffle=True, drop_last=False, batch_decode=False)
    made = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=keep)
    return lambda: iter(made)


# ---- WebDataset: tar files of 84 MB, shuffled by file and in a buffer of 1,000 samples


def make_webdataset(store: Path, out: Path) -> None:
    import webdataset  # type: ignore

    with webdataset.ShardWriter(str(out / "%05d.tar"), maxsize=84e6, verbose=0) as shards:
        for name, sample in patches(store):
            shards.write({"__key__": name} | {f"{k}.npy": v for k, v in sample.items()})


def webdataset(out: Path, work: Work, keep: bool) -> Epoch:
    import webdataset as wds  # type: ignore

    def plain(sample: Sample) -> Sample:
        return work({k.removesuffix(".npy"): v for k, v in sample.items() if k.endswith(".npy")})

    urls = [str(p) for p in sorted(out.glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).decode().map(plain)
    batches = dataset.batched(BATCH, collation_fn=torch.utils.data.default_collate)
    made = wds.WebLoader(batches, batch_size=None, num_workers=WORKERS, persistent_workers=keep)
    return lambda: iter(made)


# ---- LMDB: as rico-hdl writes BigEarthNet and its loaders read it: patch id -> safetensors, a tensor a band


def make_lmdb(store: Path, out: Path) -> None:
    import lmdb  # type: ignore
    from safetensors.numpy import save  # type: ignore

    labels = {}
    with lmdb.open(str(out), map_size=1 << 40, sync=False) as env:
        for name, sample in patches(store):
            labels[name.encode()] = sample.pop("labels")
            bands = {f"{k} {i:02d}": band for k, v in sample.items() for i, band in enumerate(v)}
            with env.begin(write=True) as txn:
                txn.put(name.encode(), save(bands))
        env.sync(True)
    np.save(out / "labels.npy", np.stack([labels[key] for key in sorted(labels)]))


class Lmdb(Dataset):
    """Opened by the worker that reads; labels lie beside it, as the loaders keep them in a table."""

    def __init__(self, out: Path, work: Work) -> None:
        self._out, self._work = out, work
        self._env: Any = None
        self._labels = torch.from_numpy(np.load(out / "labels.npy"))
        with _opened(out) as env, env.begin() as txn:
            self._keys = [bytes(k) for k in txn.cursor().iternext(values=False)]  # sorted, as the labels are

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> Sample:
        from safetensors.numpy import load  # type: ignore

        self._env = self._env or _opened(self._out)
        with self._env.begin(buffers=True) as txn:
            bands = load(bytes(txn.get(self._keys[number])))
        fields: dict[str, list[np.ndarray]] = {}
        for name in sorted(bands):
            fields.setdefault(name.split()[0], []).append(bands[name])
        sample = {name: torch.from_numpy(np.stack(of)) for name, of in fields.items()}
        return self._work(sample | {"labels": self._labels[number]})


def _opened(out: Path) -> Any:
    import lmdb  # type: ignore

    return lmdb.open(str(out), readonly=True, lock=False, meminit=False, readahead=False)


def of_lmdb(out: Path, work: Work, keep: bool) -> Epoch:
    made = DataLoader(Lmdb(out, work), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=keep)
    return lambda: iter(made)


# ---- FFCV: one file of fixed-size arrays, two threads; in cold turns as for data that memory does not hold


def make_ffcv(store: Path, out: Path) -> None:
    from ffcv.fields import NDArrayField  # type: ignore
    from ffcv.writer import DatasetWriter  # type: ignore

    first = next(patches(store))[1]
    fields = {name: NDArrayField(dtype=a.dtype, shape=a.shape) for name, a in first.items()}
    DatasetWriter(str(out / "data.beton"), fields, num_workers=WORKERS).from_indexed_dataset(Tuples(store))


class Tuples(Dataset):
    """All of a store in memory, for FFCV's writer."""

    def __init__(self, store: Path) -> None:
        self._samples = [tuple(sample.values()) for _, sample in patches(store)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[np.ndarray, ...]:
        return self._samples[number]


def ffcv(out: Path, work: Work, keep: bool) -> Epoch:
    from ffcv.fields.decoders import NDArrayDecoder  # type: ignore
    from ffcv.loader import Loader, OrderOption  # type: ignore
    from ffcv.reader import Reader  # type: ignore

    path = str(out / "data.beton")
    names = Reader(path).field_names
    order = OrderOption.RANDOM if keep else OrderOption.QUASI_RANDOM
    pipelines = {name: [NDArrayDecoder()] for name in names}
    made = Loader(path, BATCH, WORKERS, os_cache=keep, order=order, pipelines=pipelines, drop_last=False)

    def epoch() -> Iterator[Sample]:
        for batch in made:
            yield work(dict(zip(names, map(torch.from_numpy, batch), strict=True)))

    return epoch


# ----

PEERS = {
    "litdata": (make_litdata, litdata),
    "webdataset": (make_webdataset, webdataset),
    "lmdb": (make_lmdb, of_lmdb),
    "ffcv": (make_ffcv, ffcv),
}


def files_of(who: str, store: Path) -> Path:
    return store.with_name(f"{store.name}-{who}")


def make(who: str, store: Path) -> None:
    """The peer's files, if they are not there; they appear when they are whole."""
    out = files_of(who, store)
    if not out.exists():
        draft = out.with_name(f"{out.name}-draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        PEERS[who][0](store, draft)
        draft.rename(out)


def installed() -> dict[str, str]:
    """Peer -> its version, or why it cannot be imported."""
    found = {}
    for who in PEERS:
        try:
            importlib.import_module(who)
            found[who] = version(who)
        except ImportError as e:
            found[who] = f"missing: {e}"
    return found


def main(who: str, store: str = "", options: str = "{}") -> None:
    """who: a peer, or "installed", which prints what there is. options: `as`: raw or image; `keep` the workers; or
    `make` the files."""
    if who == "installed":
        print(json.dumps(installed()))
        return
    told = json.loads(options)
    if told.get("make"):
        make(who, Path(store))
        return
    work = Normalised(Path(store)) if told["as"] == "image" else as_it_is
    serve(PEERS[who][1](files_of(who, Path(store)), work, told["keep"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
