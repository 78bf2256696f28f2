"""Feeds the reader of pickles what no honest program writes. Run as a script: it must end well within its memory.

python -m tests.helpers.pickle_attacks mutants 100000
python -m tests.helpers.pickle_attacks families FOLDER
"""

import io
import pickle
import random
import struct
import sys
from pathlib import Path

import numpy as np

from mask2former.checkpoint import CheckpointError, read_checkpoint
from mask2former.checkpoint.pickle_data import parse_pickle

MEMORY = 1 << 30

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
DTYPE = b"cnumpy\ndtype\n(S'f4'\nI00\nI01\ntR"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def limit_memory() -> None:
    """Let this process have no more than a GiB above what it has."""
    import resource  # POSIX alone

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def text(data: bytes) -> bytes:
    """The instruction for a text."""
    return b"X" + struct.pack("<I", len(data)) + data


def array(state: bytes) -> bytes:
    """A checkpoint with one array, given the pickle of its state."""
    return b"}" + text(b"w") + EMPTY_ARRAY + state + b"bs."


def dtype_with(state: bytes, name: bytes = b"V8") -> bytes:
    """A checkpoint with an array of 16 bytes, whose dtype is given this state."""
    dtype = b"cnumpy\ndtype\n(S'%s'\nI00\nI01\ntR" % name + state + b"b"
    return array(b"(I1\n(I2\nt" + dtype + b"I00\nS'" + b"A" * 16 + b"'\nt")


def families() -> dict[str, bytes]:
    """Pickles by what they try; each must be refused."""
    objects = b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
    doubled = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))
    result = {
        f"dtype with the flags {flags}": dtype_with(b"(I3\nS'|'\nNNNI8\nI1\nI%d\nt" % flags) for flags in range(64)
    }
    result |= {
        "fields at a negative offset": dtype_with(
            b"(I3\nS'|'\nN(S'a'\nt(dS'a'\n(" + objects + b"I-64\ntsI8\nI1\nI27\nt"
        ),
        "dtype of objects": dtype_with(b"(I3\nS'|'\nNNNI-1\nI-1\nI63\nt", b"O8"),
        "sub-array dtype": dtype_with(b"(I3\nS'|'\n(" + DTYPE + b"(I9999\nttNNI4\nI1\nI0\nt", b"f4"),
        "dtype of another size": dtype_with(b"(I3\nS'<'\nNNNI1048576\nI1\nI0\nt", b"f4"),
        "dtype of a dtype": dtype_with(b"(I3\n" + DTYPE + b"NNNI-1\nI-1\nI0\nt", b"f4"),
        "long dtype": dtype_with(b"(I3\nS'<'\nNNNI-1\nI-1\nI0\nt", b"f" + b"8" * 100_000),
        "bytes too few": array(b"(I1\n(I1000000\nt" + DTYPE + b"I00\nS'AAAA'\nt"),
        "bytes too many": array(b"(I1\n(I1\nt" + DTYPE + b"I00\nS'AAAAAAAA'\nt"),
        "negative shape": array(b"(I1\n(I-1\nI-1\nt" + DTYPE + b"I00\nS'AAAA'\nt"),
        "shape that overflows": array(
            b"(I1\n(I4294967296\nI4294967296\nI1\nt" + DTYPE + b"I00\nS''\nt",
        ),
        "empty of a huge shape": array(b"(I1\n(I0\n" + b"I99999999999\n" * 5 + b"t" + DTYPE + b"I00\nS''\nt"),
        "33 dimensions": array(b"(I1\n(" + b"I1\n" * 100 + b"t" + DTYPE + b"I00\nS'AAAA'\nt"),
        "objects as bytes": array(b"(I1\n(I1\nt" + DTYPE + b"I00\n(lNat"),
        "array of an array's memory": array(b"(I1\n(I1\nt" + DTYPE + b"I00\n" + EMPTY_ARRAY + b"t"),
        "array without a state": b"}" + text(b"w") + EMPTY_ARRAY + b"s.",
        "state for a list": b"](I1\ntb.",
        "state for a dict": b"}(dS'a'\nI1\nsb.",
        "state for an OrderedDict": b"ccollections\nOrderedDict\n)R}b.",
        "state for a function": b"c_codecs\nencode\n}b.",
        "a function for a weight": b"}" + text(b"w") + b"c_codecs\nencode\ns.",
        "bytes(n)": b"cbuiltins\nbytes\n(I99999999999\ntR.",
        "bytearray(n)": b"cbuiltins\nbytearray\n(I99999999999\ntR.",
        "list of a range": b"cbuiltins\nlist\n(cbuiltins\nrange\n(I99999999999\ntRtR.",
        "unicode bomb by a codec": b"c_codecs\nencode\n(" + text(b"a" * 1000) + text(b"zlib") + b"tR.",
        "one text encoded over and over": b"c_codecs\nencode\nq\x00"
        + (text(b"a" * 1_000_000) + text(b"latin1") + b"\x86q\x01(")
        + b"h\x00h\x01R" * 10_000
        + b"l.",
        "one array under many names": b"}(" + b"".join(
            text(b"%d" % i) + b"h\x01" if i else text(b"first") + (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I250000\nt" + DTYPE
                + b"I00\nB" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + b"q\x02tbq\x01"
            ) for i in range(2)
        ) + b"".join(
            text(b"x%d" % i) + EMPTY_ARRAY + b"(I1\n(I250000\nt" + DTYPE + b"I00\nh\x02tb" for i in range(5000)
        ) + b"u.",
        "one list made a dict over and over": b"ccollections\nOrderedDict\nq\x00("
        + (b"(" + b"(S'a'\nNl" * 10_000 + b"l\x85q\x01") + b"h\x00h\x01R" * 100_000 + b"l.",
        "lists of lists, 2**60 in all": b"}" + text(b"w") + doubled + b"s.",
        "lists of lists, 2**60 in all, elsewhere": b"}(" + text(b"model") + b"}" + text(b"x") + doubled + b"u.",
        "a list of itself": b"}" + text(b"x") + b"]q\x00(h\x00h\x00h\x00es.",
        "a dict of itself": b"}q\x00" + text(b"model") + b"h\x00s.",
        "deep lists": b"}" + text(b"x") + b"(" * 100_000 + b"l" * 100_000 + b"s.",
        "deep tuples": b"}" + text(b"x") + b")" + b"\x85" * 200_000 + b"s.",
        "deep states": b"}" + text(b"x") + EMPTY_ARRAY * 2 + b"".join([b"(I1\nNNNI0\ntb"] * 1000) + b"s.",
        "a deep key": b"})" + b"\x85" * 100_000 + b"Ns.",
        "a key of 2**60": b"}" + doubled.replace(b"]", b")") + b"Ns.",
        "keys of one hash": b"}(" + b"".join(b"\x8a\x10" + (i * ((1 << 61) - 1)).to_bytes(16, "little") + b"N"
                                               for i in range(1, 100_000)) + b"u.",
        "places of one hash": b"N" + b"".join(b"p%d\n" % (i * ((1 << 61) - 1)) for i in range(1, 50_000)) + b".",
        "a place of 4 GiB": b"Nr\xff\xff\xff\xff.",
        "text of 4 GiB": b"X\xff\xff\xff\xffa.",
        "text of 2**63": b"\x8d" + b"\xff" * 7 + b"\x7fa.",
        "bytes of 2**60": b"\x8e" + b"\0" * 7 + b"\x10a.",
        "bytearray of 2**40": b"\x96" + b"\0" * 5 + b"\1\0\0a.",
        "a number of 2 GiB": b"\x8b\xff\xff\xff\x7fa.",
        "a number of negative size": b"\x8b\xff\xff\xff\xffa.",
        "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a frame of 2**63": b"\x95" + b"\xff" * 7 + b"\x7f",
        "empty containers alone": b"(" + b"}" * 3_000_000 + b"l.",
        "marks alone": b"(" * 3_000_000,
        "an extension": b"\x82\x01.",
        "a persistent name": b"Pa\n.",
        "an instance": b"(S'x'\nicollections\nOrderedDict\n.",
        "an object": b"(ccollections\nOrderedDict\no.",
        "a new object": b"ccollections\nOrderedDict\n)\x81.",
        "a class of NumPy": b"cnumpy.core.multiarray\nfromfile\n.",
        "a method of a class": b"\x8c\x07OrderedDict\x8c\x08__init__\x93.",
        "no names": b"NN\x93.",
        "an array called": EMPTY_ARRAY + b")R.",
        "nothing": b".",
        "no end": b"N",
        "no stack": b"a.",
        "no mark": b"l.",
        "half an item": b"}(Nu.",
    }  # fmt: skip
    return result


def run_families(folder: Path) -> None:
    """Read a file of each family, which must be refused."""
    for name, data in families().items():
        file = folder / "attack.pkl"
        file.write_bytes(data)
        try:
            read_checkpoint(file)
        except CheckpointError as error:
            message = str(error)
        else:
            raise AssertionError(f"{name} was read")
        assert len(message) < 1000, name
    sys.stdout.write(f"{len(families())} refused\n")


def seeds() -> list[bytes]:
    """Honest and dishonest pickles to mutate."""
    content = {"model": {"w": ARRAY, "b": np.int64(7), "h": ARRAY.astype(">f2")}, "x": [1, 2.5, ("a", b"c"), None]}
    small = [data for data in families().values() if len(data) < 1000]
    return [pickle.dumps(content, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)] * 20 + small


def mutate(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Change a pickle at a few places."""
    result = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(result))
        end = at + draw.randint(1, 12)
        kind = draw.randrange(6)
        if kind == 0:
            result[at] = draw.randrange(256)
        elif kind == 1:
            result[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del result[at:end]
        elif kind == 3:
            result[at:at] = result[at:end]
        elif kind == 4:
            start = draw.randrange(len(other))
            result[at:at] = other[start : start + draw.randint(1, 40)]
        else:
            result[at:end] = struct.pack("<q", draw.choice([-1, 0, 1 << 31, 1 << 62, -(1 << 63), 0xFFFFFFFF]))
        if not result:
            return data
    return bytes(result)


def run_mutants(count: int) -> None:
    """Read pickles that were changed at random: each gives plain data or an exception."""
    draw = random.Random(0)
    pool = seeds()
    read = 0
    for _ in range(count):
        data = mutate(draw.choice(pool), draw.choice(pool), draw)
        try:
            content = parse_pickle(io.BytesIO(data), len(data), name="mutant")
        except Exception:  # any exception is a good end; anything else ends the process
            continue
        check_plain(content)
        read += 1
    assert read > count // 200, f"{read} mutants read: they do not get far"
    sys.stdout.write(f"{count} mutants, {read} read\n")


def check_plain(value: object) -> None:
    """Raise unless this is what a checkpoint may hold, and touch all of it."""
    if isinstance(value, dict):
        assert all(type(key) in (str, int) for key in value)
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            check_plain(item)
    elif isinstance(value, (np.ndarray, np.generic)):
        assert value.dtype.kind in "biufc"
        assert value.dtype.isnative
        value.tobytes()
    else:
        assert value is None or type(value) in (bool, int, float, str, bytes, bytearray), type(value)


if __name__ == "__main__":
    limit_memory()
    if sys.argv[1] == "mutants":
        run_mutants(int(sys.argv[2]))
    else:
        run_families(Path(sys.argv[2]))
